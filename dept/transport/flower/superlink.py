"""Flower's SuperLink, which only this machine can control.

`python -m dept.transport.flower.superlink OPTIONS` takes the options of `flower-superlink`.

The SuperLink serves silos and its operator on one port. Without a licence it asks operators for no
password: whoever reaches the port could register a key of their own, or start an app on the
server. So this command answers requests that are not of silos (`/v1/fleet`) only if they come from
this machine.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from starlette.middleware import Middleware

from dept.transport.flower import superexec

FOR_SILOS = ("/v1/fleet/", "/health")
"""Beginnings of the paths that other machines may ask for."""

Scope = MutableMapping[str, Any]


class OnlyHere:
    """An ASGI middleware that refuses requests of other machines, except those of silos.

    Args:
        app: the application.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan" or allowed(scope):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"only the server itself may ask"})
            return
        await send({"type": "websocket.close", "code": 1008})


def allowed(scope: Scope) -> bool:
    """Whether a request is of a silo, or comes from this machine."""
    if str(scope.get("path", "")).startswith(FOR_SILOS):
        return True
    host = (scope.get("client") or ("", 0))[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main() -> None:
    """Start the SuperLink."""
    others = extensions.get_middleware
    extensions.get_middleware = lambda: (Middleware(OnlyHere), *others())
    superexec.watch(os._exit)
    flower_superlink()


if __name__ == "__main__":
    sys.exit(main())
