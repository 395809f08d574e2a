"""The silos as the server sees them: who is connected, what they were asked, and their replies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from dept.transport.flower.joining import Member, Model, check_joined
from dept.transport.flower.messages import PROTOCOL, Field, Parcel, Refused
from dept.transport.flower.record import of_record, to_record

RETRY = 5.0
"""Seconds until a silo whose trainer did not answer is asked again."""

TRAIN = "train"
"""The message type of Flower for all messages of ours."""


@dataclass
class _Asked:
    node: int
    kind: str
    round_index: int


class Silos:
    """Sends messages to silos and collects their replies; nothing here waits.

    Args:
        grid: Flower's grid.
        terms: settings that all silos must share, as JSON by key.
        sources: all sources of the federation, or those that it begins with.
        say: shows a sentence.
        is_open: whether silos may bring other sources, and take theirs out.
        model: what all silos have in common, if an earlier server of this run has found it.
        clock: seconds.
        ttl: seconds after which Flower drops a message.

    Attributes:
        members: the silos that have joined, by name.
        model: what all silos have in common, once one has joined.
        sent: bytes of arrays sent, and received (``down``, ``up``).
        is_new: whether the run has no round behind it, so that models as built are compared.
    """

    def __init__(
        self,
        grid: Grid,
        terms: Mapping[str, str],
        sources: Sequence[str],
        say: Callable[[str], None],
        *,
        is_open: bool = False,
        model: Model | None = None,
        is_new: bool = True,
        clock: Callable[[], float] = time.monotonic,
        ttl: float = 12 * 3600.0,
    ) -> None:
        self.grid, self.terms, self.sources = grid, dict(terms), tuple(sources)
        self.say, self.clock, self.ttl = say, clock, ttl
        self.is_open = is_open
        self.members: dict[str, Member] = {}
        self.model, self.is_new = model, is_new
        self.sent: Counter[str] = Counter()
        self.online: set[int] = set()
        self._outstanding: dict[str, _Asked] = {}
        self._joins: dict[int, float] = {}  # when each node may be asked to join again
        self._refused: dict[int, str] = {}
        self._gone: dict[str, float] = {}  # since when a member is disconnected

    # --- what the server sees --------------------------------------------------------------------

    def member_of(self, source: str) -> Member | None:
        """The silo of a source, if one has joined."""
        return next((m for m in self.members.values() if source in m.sources), None)

    def reachable(self, round_index: int) -> list[Member]:
        """The silos that can train a new round: connected, answering, and not still in another."""
        return [
            m
            for m in self.members.values()
            if m.node in self.online
            and m.failing is None
            and (m.asked is None or m.asked >= round_index)
        ]

    def lost_for(self, member: Member) -> float:
        """Seconds for which a silo has been disconnected, or its trainer has not answered."""
        since = [t for t in (self._gone.get(member.name), member.failing) if t is not None]
        return self.clock() - min(since) if since else 0.0

    # --- messages --------------------------------------------------------------------------------

    def ask(self, member: Member, parcel: Parcel) -> bool:
        """Send a message to a silo, unless it is busy, gone, or was asked a moment ago.

        Args:
            member: the silo.
            parcel: a ``round`` or a ``start``.

        Returns:
            Whether it was sent.
        """
        if member.asked is not None or member.node not in self.online or member.is_stale:
            return False
        round_index = int(parcel.fields.get("round", 0))  # type: ignore[arg-type]
        if self._push(member.node, parcel, round_index):
            member.asked = round_index
            self.sent["down"] += parcel.nbytes
        return member.asked is not None

    def dismiss(self, member: Member) -> None:
        """Forget a silo that has left; its node is not asked again until it connects again."""
        del self.members[member.name]
        self._refused[member.node] = "it has left"
        self.say(f"silo {member.name} has left the federation")

    def poll(self) -> list[tuple[Member, Parcel]]:
        """Ask new nodes to join, and collect the replies of silos.

        Returns:
            Replies to :meth:`ask`, each with its silo. Messages that cannot be read are dropped,
            and said.
        """
        self._look_who_is_there()
        replies = []
        for message in self.grid.pull_messages(list(self._outstanding)):
            asked = self._outstanding.pop(message.metadata.reply_to_message_id, None)
            if asked is None:
                continue  # a second reply to the same message
            member = next((m for m in self.members.values() if m.node == asked.node), None)
            if member is not None and asked.kind != "join":
                member.asked = None
            if message.has_error():
                self._failed(asked, member, str(message.error.reason))
                continue
            try:
                parcel = of_record(message.content)
                if asked.kind == "join":
                    self._take_joined(asked.node, parcel)
                elif member is not None:
                    self._take_answer(member, parcel)
                    replies.append((member, parcel))
            except Refused as error:
                who = f"silo {member.name}" if member else f"node {asked.node}"
                self.say(f"a message of {who} is refused: {error}")
        return replies

    def _take_answer(self, member: Member, parcel: Parcel) -> None:
        self.sent["up"] += parcel.nbytes
        if member.failing is not None:
            self.say(f"silo {member.name} answers again")
        member.failing = None

    def _push(self, node: int, parcel: Parcel, round_index: int) -> bool:
        message = Message(
            to_record(parcel),
            dst_node_id=node,
            message_type=TRAIN,
            ttl=self.ttl,
            group_id=str(round_index),
        )
        ids = [i for i in self.grid.push_messages([message]) if i]
        for message_id in ids:
            self._outstanding[message_id] = _Asked(node, parcel.kind, round_index)
        return bool(ids)

    def _look_who_is_there(self) -> None:
        before, self.online = self.online, set(self.grid.get_node_ids())
        for member in self.members.values():
            if member.node in self.online:
                if self._gone.pop(member.name, None) is not None:
                    self.say(f"silo {member.name} is connected again")
            elif member.name not in self._gone:
                self._gone[member.name] = self.clock()
                self.say(f"silo {member.name} has lost its connection")
        settled = {m.node for m in self.members.values() if not m.is_stale}
        known = settled | set(self._refused)
        joining = {a.node for a in self._outstanding.values() if a.kind == "join"}
        for node in self.online - known - joining:
            if self.clock() >= self._joins.get(node, 0.0):
                terms = [f"{key} {value}" for key, value in self.terms.items()]
                fields: dict[str, Field] = {"protocol": PROTOCOL, "terms": terms}
                fields["sources"] = [] if self.is_open else list(self.sources)
                self._push(node, Parcel("join", fields), 0)
        for node in before - self.online:
            self._refused.pop(node, None)
            self._joins.pop(node, None)
            for message_id, asked in list(self._outstanding.items()):
                if asked.node == node:
                    del self._outstanding[message_id]
            for member in self.members.values():
                if member.node == node:
                    member.asked, member.is_stale = None, True

    def _failed(self, asked: _Asked, member: Member | None, reason: str) -> None:
        self._joins[asked.node] = self.clock() + RETRY
        if member is None:
            return
        member.is_stale = True
        if member.failing is None:
            member.failing = self.clock()
            self.say(f"silo {member.name} does not answer: {reason:.200}")

    def _take_joined(self, node: int, parcel: Parcel) -> None:
        fields: dict[str, Any] = dict(parcel.fields)
        name = fields.get("silo", "?")
        try:
            if parcel.kind != "joined":
                raise Refused(f"it answers with {parcel.kind}")
            if fields["refusal"]:
                raise Refused(fields["refusal"])
            self.model = check_joined(
                parcel,
                others=[m for m in self.members.values() if m.node != node],
                online=self.online,
                sources=None if self.is_open else self.sources,
                model=self.model,
                is_new=self.is_new,
            )
        except Refused as error:
            self._refused[node] = str(error)
            self.say(f"silo {name!s:.40} does not take part: {error}")
            self.members = {n: m for n, m in self.members.items() if m.node != node}
            return
        before = next((m for m in self.members.values() if m.node == node), None)
        now = Member(
            name, node, tuple(fields["sources"]), dict(parcel.arrays), tuple(fields["leaving"])
        )
        if before is not None:  # it is reachable once it has answered a round, as before
            del self.members[before.name]
            now.failing = before.failing
        self.members[name] = now
        self._gone.pop(name, None)
        if before is None or (before.name, before.sources) != (name, now.sources):
            self.say(f"silo {name} has joined with {', '.join(now.sources)}")
