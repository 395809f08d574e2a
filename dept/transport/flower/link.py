"""The trainer's side of a federation: a Unix socket, on which its ClientApp brings messages.

Each message comes from a process of its own, which waits for the answer. A thread for each of them
checks the message, and answers what needs no training. A round waits for the trainer. If the
process that brought it dies, the server asks again, and gets the same answer. A trainer that was
started again leaves messages without an answer until the server has asked it to join.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dept.errors import ConfigError
from dept.log import log
from dept.transport.flower import frames
from dept.transport.flower.joining import check_sources
from dept.transport.flower.messages import (
    PROTOCOL,
    Parcel,
    Refused,
    check_arrays,
    pairs,
    shapes_to_fields,
)

LONGEST_PATH = 100
"""Unix sockets have no longer paths, on any system."""


@dataclass
class Announcement:
    """What a silo says of itself when it joins.

    Attributes:
        silo: its name.
        sources: its sources.
        tokenizer: hash of its global tokenizer; empty if the variant does not use it.
        theta: hash of its global model, and the model itself as built: float32 by name.
        rows: for TRIM, int32[n] by source: the token rows that it holds.
        by_row: names of the parameters averaged by token row.
        leaving: those of its sources that leave the federation.
    """

    silo: str
    sources: list[str]
    tokenizer: str
    theta: str
    model: dict[str, np.ndarray]
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    by_row: list[str] = field(default_factory=list)
    leaving: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the global model."""
        return {name: array.shape for name, array in self.model.items()}


class Link:
    """The connection of a trainer to the server of its federation.

    Args:
        path: path of the socket.
        terms: settings that the server must have too, as JSON by key.
        difference: compares terms of the silo and of the server; returns a sentence or ``None``.
    """

    def __init__(
        self,
        path: str | Path,
        terms: Mapping[str, str],
        difference: Callable[[Mapping[str, str], Mapping[str, str]], str | None],
    ) -> None:
        self.path, self.terms, self._difference = Path(path), dict(terms), difference
        self._changed = threading.Condition()
        self._announced: Announcement | None = None
        self._waiting: list[tuple[Parcel, socket.socket]] = []
        self._answer: Parcel | None = None
        self._refusal: str | None = None
        self._answering = 0
        self._has_joined = False
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Listen on the socket; its folder and the socket are only for this user.

        Raises:
            ConfigError: the path is too long, or another trainer listens on it.
        """
        if len(str(self.path)) > LONGEST_PATH:
            raise ConfigError(
                f"algorithms.dept.federation.socket is {self.path}, longer than {LONGEST_PATH} "
                f"characters: set it to a shorter path"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as other:
            other.connect(str(self.path))
            raise ConfigError(f"another trainer listens on {self.path}: end it, or set another")
        self.path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(str(self.path))
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be a socket ({error.strerror})") from None
        finally:
            os.umask(before)
        listener.listen()
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self, wait: float = 60.0) -> None:
        """Stop listening, once answers are sent.

        Args:
            wait: seconds to wait for the process that the last answer is sent to.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._answering, wait)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self.path.unlink(missing_ok=True)

    def announce(self, announcement: Announcement) -> None:
        """Say what this silo is, once its model and its sources are there; the server asks."""
        with self._changed:
            self._announced = announcement
            self._changed.notify_all()

    def next_round(self, after: int, stops: Callable[[], bool]) -> Parcel | None:
        """Wait for the server to direct a round.

        Args:
            after: the least number of outer steps that the round has behind it.
            stops: returns whether this process has been asked to end.

        Returns:
            The message; ``None`` if the process has been asked to end.

        Raises:
            ConfigError: the silo cannot take part.
        """
        while True:
            with self._changed:
                if self._refusal is not None:
                    self._changed.wait_for(lambda: not self._answering, 30.0)
                    raise ConfigError(f"the federation and this silo differ: {self._refusal}")
                ready = [p for p, _ in self._waiting if int(p.fields["round"]) >= after]
                if ready:
                    return ready[-1]
                self._changed.wait(0.5)
            if stops():
                return None

    def answer(self, parcel: Parcel) -> None:
        """Send the answer to the round it names, and to each later message that repeats it."""
        with self._changed:
            self._answer = parcel
            self._changed.notify_all()

    # --- threads ---------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            try:
                # A model is received once it is known how large it is.
                announced = self._wait_until_announced(connection)
                limit = sum(a.nbytes for a in announced.model.values())
                parcel = frames.receive(connection, limit)
                with self._busy():
                    reply = self._reply(parcel, announced, connection)
                    if reply is not None:
                        frames.send(connection, reply)
                        connection.recv(1)  # the other side closes when it has read all
            except Refused as error:
                log.warning(f"a message of the server is refused: {error}")

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        with self._changed:
            self._answering += 1
        try:
            yield
        finally:
            with self._changed:
                self._answering -= 1
                self._changed.notify_all()

    def _wait_until_announced(self, connection: socket.socket) -> Announcement:
        with self._changed:
            while self._announced is None:
                self._changed.wait(1.0)
            return self._announced

    def _reply(
        self, parcel: Parcel, announced: Announcement, connection: socket.socket
    ) -> Parcel | None:
        if parcel.kind == "join":
            return self._join(parcel, announced)
        if not self._has_joined:
            return None  # the server does not know this process yet, which may have other sources
        if parcel.kind == "start":
            return Parcel("started", arrays=announced.model)
        if parcel.kind == "round":
            try:
                check_arrays(parcel.arrays, announced.shapes, "the server")
                odd = [s for s in parcel.fields["drawn"] if s not in announced.sources]  # type: ignore[union-attr]
                if odd:
                    raise Refused(f"the server draws {odd[0]:.40}, which this silo does not have")
            except Refused as error:
                log.warning(f"a message of the server is refused: {error}")
                return self._no(parcel, announced, str(error))
            return self._wait_for_answer(parcel, announced, connection)
        raise Refused(f"a silo is not asked for {parcel.kind}")

    def _join(self, parcel: Parcel, announced: Announcement) -> Parcel:
        refusal = None
        if parcel.fields["protocol"] != PROTOCOL:
            refusal = (
                f"the server has version {parcel.fields['protocol']} of the messages and this silo "
                f"version {PROTOCOL}: install the same version of this repository"
            )
        else:
            theirs = pairs(parcel.fields["terms"])  # type: ignore[arg-type]
            refusal = self._difference(self.terms, theirs) or _refusal_of(announced, parcel)
        if refusal is not None:
            with self._changed:
                self._refusal = refusal
                self._changed.notify_all()
        self._has_joined = refusal is None
        return Parcel(
            "joined",
            {
                "protocol": PROTOCOL,
                "refusal": refusal or "",
                "silo": announced.silo,
                "sources": announced.sources,
                "tokenizer": announced.tokenizer,
                "theta": announced.theta,
                "parameters": shapes_to_fields(announced.shapes),
                "by_row": announced.by_row,
                "leaving": announced.leaving,
            },
            arrays=announced.rows,
        )

    def _no(self, parcel: Parcel, announced: Announcement, why: str) -> Parcel:
        fields = {"round": parcel.fields["round"], "nonce": parcel.fields["nonce"], "refusal": why}
        return Parcel("update", fields | {"silo": announced.silo, "sources": [], "left_out": []})

    def _wait_for_answer(
        self, parcel: Parcel, announced: Announcement, connection: socket.socket
    ) -> Parcel | None:
        """The answer of the trainer; ``None`` if the process that asked is gone."""
        mine = (parcel, connection)
        with self._changed:
            self._waiting.append(mine)
            self._changed.notify_all()
            try:
                while self._answer is None or self._answer.fields["round"] < parcel.fields["round"]:  # type: ignore[operator]
                    self._changed.wait(1.0)
                    if _is_closed(connection):
                        return None
                if self._answer.fields["nonce"] == parcel.fields["nonce"]:
                    return self._answer
                return self._no(parcel, announced, "this silo has answered a later message")
            finally:
                self._waiting.remove(mine)


def _refusal_of(announced: Announcement, join: Parcel) -> str | None:
    """Why the server does not allow the sources of this silo."""
    allowed: list[str] = join.fields["sources"]  # type: ignore[assignment]
    try:
        check_sources(announced.sources, announced.leaving, allowed or None)
    except Refused as error:
        return str(error)
    return None


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.setblocking(True)


_current: Link | None = None


def joined() -> Link:
    """The link of this process.

    Raises:
        ConfigError: this process has opened none.
    """
    if _current is None:
        raise ConfigError(
            "algorithms.dept.federation is set, but this program has opened no socket for it: "
            "start the silo with train.py"
        )
    return _current


def join(link: Link | None) -> None:
    """Open the link of this process, which :func:`joined` returns from then on.

    Raises:
        ConfigError: the socket cannot be opened.
    """
    global _current
    if link is not None:
        link.open()
    _current = link
