"""Count the bytes of a connection: a port of this machine that forwards to another one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter


class Meter:
    """Forwards connections and counts their bytes.

    Args:
        port: the port of this machine to forward to.

    Attributes:
        port: the port to connect to.
        counted: bytes so far, ``up`` from those who connect here and ``down`` to them.
    """

    def __init__(self, port: int) -> None:
        self.counted: Counter[str] = Counter()
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            try:
                there = socket.create_connection(("127.0.0.1", self._to))
            except OSError:  # whoever connects will try again
                here.close()
                continue
            for way, source, target in (("up", here, there), ("down", there, here)):
                threading.Thread(target=self._pump, args=(way, source, target), daemon=True).start()

    def _pump(self, way: str, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.counted[way] += len(data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
                end.close()
