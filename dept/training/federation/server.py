"""The server of a federation: it draws sources, combines their updates, and takes the outer step.

The same functions as in a job of workers do this (``dept/method``, ``dept/transport``), so a
federation learns the same numbers as ``composer -n W``.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from dept.config.options import DeptOptions
from dept.errors import ConfigError
from dept.method.averaging import Average, Share
from dept.method.compression import Compression
from dept.method.outer_optimizer import OuterOptimizer
from dept.method.streams import seed_of
from dept.training.federation.attendance import Attendance
from dept.training.federation.replies import (
    Replies,
    account,
    check_update,
    embeddings_of,
    sentence,
    share_of,
    without_embeddings,
)
from dept.training.federation.roster import Roster
from dept.training.federation.server_files import Plan, ServerFiles, ServerState
from dept.transport.flower.joining import Member, Model
from dept.transport.flower.messages import Parcel, Refused, check_arrays, check_metrics
from dept.transport.flower.silos import Silos
from dept.transport.flower.theta import hash_of
from dept.transport.reductions import Reductions
from dept.transport.topology import Place
from dept.transport.workers import Workers


class Server:
    """Trains the body of a federation.

    Args:
        options: options of ``algorithms.dept``.
        seed: seed of the run.
        rounds: number of rounds.
        silos: the silos.
        files: the files of this server.
        outer_optimizer: takes the outer step.
        state: what an earlier server has kept, or that of a new run.
        say: shows a sentence.
        clock: seconds.
        sleep: waits some seconds between two looks at the silos.
    """

    def __init__(
        self,
        *,
        options: DeptOptions,
        seed: int,
        rounds: int,
        silos: Silos,
        files: ServerFiles,
        outer_optimizer: OuterOptimizer,
        state: ServerState,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[], None] = lambda: time.sleep(0.5),
    ) -> None:
        federation = options.federated
        assert federation is not None
        self.options, self.federation = options, federation
        self.seed, self.rounds, self.silos, self.files = seed, rounds, silos, files
        self.outer_optimizer, self.say = outer_optimizer, say
        self.clock, self.sleep = clock, sleep
        self.compression = Compression.of(options.compression)
        self.reductions = Reductions(self.compression, options.aggregation())
        self.state = state
        self.attendance = Attendance(
            options=options,
            seed=seed,
            rounds=rounds,
            silos=silos,
            files=files,
            state=state,
            say=say,
            clock=clock,
            sleep=sleep,
        )
        self.reductions.returned_error |= state.coding_error
        if state.outer_optimizer:
            self.outer_optimizer.load_state_dict(state.outer_optimizer)

    @property
    def roster(self) -> Roster:
        """Which sources the federation has in which rounds."""
        return self.attendance.roster

    def run(self) -> None:
        """Train all remaining rounds.

        Raises:
            ConfigError: the first silo does not fit the yaml of the server.
            NumericalFault: a value would not be finite.
            NotSaved: the state cannot be written.
        """
        if any(not line["drawn"] for line in self.state.history):
            return  # an earlier server has finished
        self.attendance.gather()
        if not self.state.theta:
            self._take_model_as_built()
        while self.state.round < self.rounds:
            self._train_round()
        self._finish()

    # --- the start -------------------------------------------------------------------------------

    def _take_model_as_built(self) -> None:
        assert self.silos.model is not None
        parcel = None
        while parcel is None:
            members = list(self.silos.members.values())
            if all(member.asked is None for member in members):
                for member in members:
                    if self.silos.ask(member, Parcel("start")):
                        break
            self.sleep()
            replies = self.attendance.look()
            parcel = next((p for _, p in replies if p.kind == "started"), None)
        check_arrays(parcel.arrays, self.silos.model.shapes, "the first silo")
        if hash_of(parcel.arrays) != self.silos.model.theta:
            raise ConfigError("the first silo sends another model than it has announced")
        self.state.theta = {n: torch.from_numpy(a.copy()) for n, a in parcel.arrays.items()}
        self._save()

    # --- a round ---------------------------------------------------------------------------------

    def _train_round(self) -> None:
        began, before = self.clock(), dict(self.silos.sent)
        plan = self.files.plan(self.state.round)
        if plan is None:
            plan = self.attendance.draw()
            self.files.write_plan(plan)
        self.say(f"round {plan.round_index + 1}/{self.rounds}: {', '.join(plan.drawn)}")
        replies = self._ask(plan)
        self._outer_step(plan, replies)
        line = self._account(plan, replies, before) | {"seconds": self.clock() - began}
        self.state.history.append(line)
        self._save()
        self.files.log(line)

    def _ask(self, plan: Plan) -> Replies:
        """Ask every silo, and wait for the replies as long as the options allow."""
        replies, began, said = Replies(), self.clock(), False
        while True:
            for member in self.silos.members.values():
                if member.name not in replies.updates.keys() | replies.refused and self.silos.ask(
                    member, self._message(plan, member)
                ):
                    replies.asked.add(member.name)
            self.sleep()
            for member, parcel in self.attendance.look():
                self._take(plan, replies, member, parcel)
            late = self.clock() - began > self.federation.round_timeout
            if not (late or not self._awaited(plan, replies)):
                continue
            needed = min(self.federation.min_sources, len(plan.drawn))
            if len(replies.sources) + len(replies.left_out) >= needed or not plan.drawn:
                return replies
            if not said:
                self.say(
                    f"round {plan.round_index + 1} has updates of {len(replies.sources)} sources, "
                    f"and min_sources is {self.federation.min_sources}: it waits for silos"
                )
                said = True

    def _awaited(self, plan: Plan, replies: Replies) -> list[str]:
        """Silos that this round still waits for."""
        done = replies.updates.keys() | replies.refused
        awaited = []
        for source in plan.drawn:
            member = self.silos.member_of(source)
            if member is None or member.name in done:
                continue
            if self.silos.lost_for(member) <= self.federation.grace:
                awaited.append(member.name)
        # Others only evaluate, and are awaited while they are there.
        able = [m.name for m in self.silos.reachable(plan.round_index)]
        return awaited + [name for name in able if name not in done]

    def _message(self, plan: Plan, member: Member) -> Parcel:
        averaged, sources = self.state.averaged, self.roster.sources_of(plan.round_index)
        return Parcel(
            "round",
            {
                "round": plan.round_index,
                "rounds": self.rounds,
                "nonce": plan.nonce,
                "drawn": [s for s in plan.drawn if s in member.sources],
                "averaged": [f"{s} {averaged[s]}" for s in member.sources if s in averaged],
                "outside": [s for s in member.sources if s not in sources],
            },
            arrays={name: value.numpy() for name, value in self.state.theta.items()},
        )

    def _take(self, plan: Plan, replies: Replies, member: Member, parcel: Parcel) -> None:
        """Take a reply, or drop one that is late, twice there, or not as it should be."""
        may_share = plan.round_index == self.rounds and not plan.drawn
        kinds = ("update", "embeddings") if may_share else ("update",)
        if parcel.kind not in kinds or (
            parcel.fields["round"] != plan.round_index or parcel.fields["nonce"] != plan.nonce
        ):
            self.say(f"a late reply of silo {member.name} is dropped")
            return
        if member.name in replies.updates:
            return
        try:
            if parcel.kind == "embeddings":
                self._take_embeddings(member, parcel)
                parcel = without_embeddings(parcel)
            check_update(parcel, plan, member, self._model, self.compression)
        except Refused as error:
            self.say(f"the update of silo {member.name} is not averaged: {error}")
            replies.refused.add(member.name)
            return
        replies.updates[member.name] = parcel
        for source in parcel.fields["sources"]:  # type: ignore[union-attr]
            replies.shares[source] = share_of(member, source, self._model)
        if self.attendance.has_left(member, plan.round_index):
            self.silos.dismiss(member)

    def _take_embeddings(self, member: Member, parcel: Parcel) -> None:
        """Write the private embeddings that a silo has chosen to share.

        Raises:
            Refused: they are no embeddings of its sources, or the variant has none.
        """
        shared = embeddings_of(parcel, member)
        if self.options.sharing.has_global_embedding:
            raise Refused(f"{self.options.variant} has no private embeddings")
        for source, embedding in shared.items():
            path = self.files.write_embedding(source, embedding, self.options.variant)
            self.say(f"silo {member.name} shares the embedding of {source}: {path}")

    @property
    def _model(self) -> Model:
        assert self.silos.model is not None
        return self.silos.model

    # --- the outer step --------------------------------------------------------------------------

    def _outer_step(self, plan: Plan, replies: Replies) -> None:
        """theta[t] = OuterOpt(theta[t-1], theta[t-1] - the combination of the local models)."""
        for name, why in replies.left_out.items():
            self.say(f"source {name} in round {plan.round_index + 1} is left out: {why:.200}")
        updates = replies.updates_by_source()
        if not updates:
            self.say("no update of this round is left: the global model is unchanged")
        else:
            means = self.combine(updates, replies.shares, plan.drawn)
            self.state.theta = self.outer_optimizer.step(self.state.theta, means)
            self.state.averaged |= dict.fromkeys(updates, plan.round_index)
        self.state.round += 1
        self.state.outer_optimizer = self.outer_optimizer.state_dict()
        self.state.coding_error = dict(self.reductions.returned_error)

    def combine(
        self,
        updates: Mapping[str, Mapping[str, Tensor]],
        shares: Mapping[str, Share],
        drawn: Sequence[str],
    ) -> dict[str, Average]:
        """Combine the updates of the sources of a round; the one place where they come together.

        Args:
            updates: by source, in any order, its local model: float32 by name, with the rows of its
                share; or with compression its coded pseudo-gradient, under the name of the source.
            shares: weight and token rows of each source.
            drawn: all sources that were drawn for the round, in their order.

        Returns:
            The average of every parameter.
        """
        noise_seed = seed_of(self.seed, "privacy", self.state.round)
        reduction = self.reductions.open(self.state.theta, drawn, noise_seed)
        for source in (s for s in drawn if s in updates):
            if self.compression is None:
                reduction.add(source, updates[source], shares[source])
            else:
                reduction.take(source, updates[source][source])  # type: ignore[attr-defined]
        ordered = {s: shares[s] for s in drawn if s in shares}
        averages = reduction.averages(Workers(Place()), [ordered], stage="the outer step")
        self.reductions.close(reduction)
        return averages

    # --- records ---------------------------------------------------------------------------------

    def _account(self, plan: Plan, replies: Replies, before: Mapping[str, int]) -> dict[str, Any]:
        metrics: dict[str, float] = {}
        for parcel in replies.updates.values():
            metrics |= check_metrics(parcel.metrics)
        for key, value in metrics.items():
            source, _, metric = key.partition("/")
            self.state.latest.setdefault(source, {})[metric] = value
        moved = {way: self.silos.sent[way] - before.get(way, 0) for way in ("down", "up")}
        line = account(plan, replies, moved, metrics)
        if plan.drawn:
            self.say(sentence(line, self.rounds))
        return line

    def _save(self) -> None:
        self.state.model = asdict(self._model)
        self.state.terms = self.silos.terms
        self.silos.is_new = self.state.round == 0
        self.files.save(self.state)

    def _finish(self) -> None:
        """Send the last global model to all silos, which evaluate it and write their models."""
        before = dict(self.silos.sent)
        plan = self.files.plan(self.rounds) or Plan(self.rounds, secrets.token_hex(8), ())
        self.files.write_plan(plan)
        self.say("training is finished: silos evaluate the last model")
        replies = self._ask(plan)
        line = self._account(plan, replies, before)
        self.files.log(line)
        self.state.history.append(line)
        self._save()


def model_of(state: ServerState) -> Model | None:
    """What silos have in common, from the state of an earlier server."""
    if not state.model:
        return None
    found = state.model
    return Model(
        {name: tuple(shape) for name, shape in found["shapes"].items()},
        tuple(found["by_row"]),
        found["tokenizer"],
        found["theta"],
    )
