"""Flower's SuperNode, which runs no app but that of this installation.

`python -m dept.transport.flower.supernode OPTIONS` takes the options of `flower-supernode`.

A run of Flower brings its app, which a SuperNode installs and runs: whoever operates the server
could run any code in a silo. Flower's `--trusted-entities` accepts only apps that someone has
signed, for which the SuperLink needs a licence. So this command compares the app with the one of
its own installation (`dept/transport/flower/app`), which has no code, and refuses every other.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.cli.build import build_fab_from_disk
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

from dept.log import log

APP = Path(__file__).with_name("app")


class OtherApp(RunNotRunningException):
    """The server wants to run another app here. Flower drops its messages, and continues."""


def own_app() -> str:
    """SHA-256 of the app of this installation, as Flower packs it."""
    return hashlib.sha256(build_fab_from_disk(APP)).hexdigest()


def checked(get_fab: Callable[..., Any], accepted: str) -> Callable[..., Any]:
    """A function that gets an app of the server, and refuses it if it is another one.

    Args:
        get_fab: Flower's own function.
        accepted: SHA-256 of the accepted app.
    """

    def get(*arguments: Any, **options: Any) -> Any:
        fab = get_fab(*arguments, **options)
        found = hashlib.sha256(fab.content).hexdigest()
        if found != accepted:
            log.error(
                f"the server wants to run app {found[:12]} in this silo, and only {accepted[:12]}, "
                f"that of this installation, is accepted: install the same version on both sides"
            )
            raise OtherApp
        return fab

    return get


def main() -> None:
    """Start the SuperNode."""
    accepted, connect = own_app(), start_client_internal.http_request_response

    @contextmanager
    def guarded(*arguments: Any, **options: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*arguments, **options) as functions:
            node, receive, send, get_run, get_fab, *others = functions
            yield (node, receive, send, get_run, checked(get_fab, accepted), *others)

    start_client_internal.http_request_response = guarded
    flower_supernode()


if __name__ == "__main__":
    sys.exit(main())
