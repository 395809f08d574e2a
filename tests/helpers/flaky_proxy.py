"""A TCP proxy on loopback for which nothing arrives at once, and some things never."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time


class FlakyProxy:
    """Passes bytes between a client and a server; a context manager.

    Args:
        port: of the server on this machine.
        cut_each: of so many connections, one is cut after its first bytes; 0 cuts none.
        delay: seconds that each piece is held back.

    Attributes:
        is_down: while set, every connection is cut.
        cut: how many were.
    """

    def __init__(self, port: int, *, cut_each: int = 0, delay: float = 0.0) -> None:
        self.is_down = threading.Event()
        self.cut = 0
        self.delay, self.cut_each = delay, cut_each
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._count = itertools.count(1)

    @property
    def port(self) -> int:
        """That clients connect to."""
        return self._listener.getsockname()[1]

    def __enter__(self) -> FlakyProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # when it is closed
            while True:
                client, _ = self._listener.accept()
                is_cut = self.cut_each and next(self._count) % self.cut_each == 0
                threading.Thread(target=self._serve, args=(client, is_cut), daemon=True).start()

    def _serve(self, client: socket.socket, is_cut: bool) -> None:
        server = socket.create_connection(self._to)
        back = threading.Thread(target=self._pass, args=(server, client, is_cut), daemon=True)
        back.start()
        self._pass(client, server, is_cut)
        back.join()

    def _pass(self, source: socket.socket, to: socket.socket, is_cut: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self.delay)
                if self.is_down.is_set() or is_cut:
                    self.cut += 1
                    to.sendall(data[: len(data) // 2] if is_cut else b"")
                    break
                to.sendall(data)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
