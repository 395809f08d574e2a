"""One process of Flower's SuperNode, which runs no app but that of this installation.

`supernode.py` starts it, and starts it again when it has ended.

A run of Flower brings its app, which a SuperNode installs and runs: whoever operates the server
could run any code in a silo. Flower's `--trusted-entities` accepts only apps that someone has
signed, for which the SuperLink needs a licence. So this process compares the app with the one of
its own installation (`dept/transport/flower/app`), which has no code, and refuses every other.

What Flower 1.42 does when something breaks is made whole here. It gives up when a TLS handshake is
cut, as by a server that dies or by a proxy; then its main loop ends and its process stays. It drops
a message or a reply that it cannot move, and the server waits in vain. It does not notice that its
thread of heartbeats, or its SuperExec, has died.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.cli import flower_supernode

from dept.log import log
from dept.transport.flower import superexec

APP = Path(__file__).with_name("app")

ABSENCE = 2.0
"""Seconds for which a new SuperNode is gone once more; the server looks twice a second."""


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


def patient(make: Callable[[], RetryInvoker]) -> Callable[[], RetryInvoker]:
    """A function that makes Flower's retries, which give up less often.

    They continue when a handshake is cut, and when the server refuses the key: it may be registered
    later, or a SuperNode with this key has just died, and its heartbeats are not yet missed.

    Args:
        make: Flower's own function.
    """

    def make_patient() -> RetryInvoker:
        invoker = make()
        gives_up = invoker.should_giveup
        assert gives_up is not None

        def judge(error: Exception) -> bool:
            if is_refused(error):
                log.warning(
                    "the server refuses the key of this SuperNode: it is not registered, or "
                    "another SuperNode with it was here a minute ago"
                )
                return False
            return not was_cut(error) and gives_up(error)

        invoker.should_giveup = judge
        return invoker

    return make_patient


def was_cut(error: BaseException) -> bool:
    """Whether a connection was closed while TLS was set up; a wrong certificate is another case."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def is_refused(error: Exception) -> bool:
    """Whether the server does not let this SuperNode in."""
    if not isinstance(error, httpx.HTTPStatusError):
        return False
    found = FlowerError.from_json(error.response.text)
    return found is not None and found.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED


def ending(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that ends this process where it fails, since Flower would drop a message.

    Args:
        function: moves messages.
    """

    def move(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except RunNotRunningException:
            raise
        except Exception as error:
            log.error(f"this SuperNode cannot reach the server ({error!s:.300}), and ends")
            raise SystemExit(1) from error

    return move


def main() -> NoReturn:
    """Run the SuperNode; ends with the process that has started it."""
    accepted, connect = own_app(), start_client_internal.http_request_response
    threading.excepthook = _end_with_thread
    threading.Thread(target=_end_with_starter, daemon=True).start()
    superexec.watch(_end)

    @contextmanager
    def guarded(*arguments: Any, **options: Any) -> Iterator[tuple[Any, ...]]:
        # The server drops what it has asked a node that goes. It would not notice that one dies and
        # another takes its place between two looks, and would wait for the answer of the dead one.
        with connect(*arguments, **options):
            pass
        time.sleep(ABSENCE)
        with connect(*arguments, **options) as functions:
            node, receive, send, get_run, get_fab, pull_object, push_object, confirm = functions
            moving = [ending(function) for function in (receive, send, get_run)]
            get_fab = checked(ending(get_fab), accepted)
            yield (node, *moving, get_fab, pull_object, ending(push_object), ending(confirm))

    start_client_internal.http_request_response = guarded
    start_client_internal.pull_objects = ending(start_client_internal.pull_objects)
    make = fleet_http_connection.make_simple_http_retry_invoker
    fleet_http_connection.make_simple_http_retry_invoker = patient(make)
    status: Any = 1
    try:
        flower_supernode()
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
    _end(status if isinstance(status, int) else 1)


def _end_with_thread(failed: threading.ExceptHookArgs) -> None:
    """Without heartbeats the server takes this node for lost, and Flower would not notice."""
    traceback.print_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)
    _end(1)


def _end_with_starter() -> None:
    """The process that has started this one holds the other end of its input."""
    sys.stdin.buffer.read()
    _end(1)


def _end(status: int) -> NoReturn:
    """End now; Flower has threads that a usual exit would wait for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
