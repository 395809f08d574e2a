"""The files of the server of a federation: its state after each round, and what it has asked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dept.checkpoint import durable
from dept.checkpoint.shared_embedding import SharedEmbedding
from dept.errors import NotSaved
from dept.log import log
from dept.training.federation.roster import Roster


@dataclass(frozen=True)
class Plan:
    """A round as the server has drawn it, written before any silo is asked.

    Attributes:
        round_index: from 0.
        nonce: a random text, which replies repeat.
        drawn: the drawn sources, in their order.
    """

    round_index: int
    nonce: str
    drawn: tuple[str, ...]


@dataclass
class ServerState:
    """All that the server must keep between rounds.

    Attributes:
        round: how many outer steps are done.
        theta: the global parameters by name.
        outer_optimizer: its state.
        coding_error: error of earlier coded means.
        averaged: the last round (from 0) in which the update of a source was averaged.
        model: what silos have in common.
        terms: settings of the federation.
        history: a summary of each round.
        latest: newest metrics of each source.
    """

    round: int = 0
    theta: dict[str, Tensor] = field(default_factory=dict)
    outer_optimizer: dict[str, Any] = field(default_factory=dict)
    coding_error: dict[str, Tensor] = field(default_factory=dict)
    averaged: dict[str, int] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    latest: dict[str, dict[str, float]] = field(default_factory=dict)


class ServerFiles:
    """Reads and writes the files in the folder of a server.

    Args:
        folder: ``runs/<run_name>/server``.
        keep: how many states to keep.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep

    def save(self, state: ServerState) -> None:
        """Write the state after a round, before any silo sees its model.

        Raises:
            NotSaved: the disk does not take it.
        """
        path = self.folder / f"round{state.round}.pt"
        try:
            with durable.replacing(path) as temporary, open(temporary, "wb") as file:
                torch.save(asdict(state), file)
        except (OSError, RuntimeError) as error:
            raise NotSaved(
                f"{path} could not be written ({str(error).splitlines()[0]}): make room on that "
                f"disk; the same command resumes from the round before"
            ) from error
        for old in self._paths()[: -self.keep]:
            old.unlink(missing_ok=True)

    def load(self) -> ServerState | None:
        """The newest state that is whole; ``None`` in a new run."""
        durable.sweep(self.folder)
        for path in reversed(self._paths()):
            if durable.is_whole(path):
                return ServerState(**torch.load(path, map_location="cpu", weights_only=True))
            log.warning(f"{path} was cut short by a kill and is not used")
            durable.set_aside(path)
        return None

    def write_plan(self, plan: Plan) -> None:
        """Write what silos are going to be asked."""
        durable.write(self.folder / "plan.json", json.dumps(asdict(plan)) + "\n")

    def plan(self, round_index: int) -> Plan | None:
        """What silos were asked for a round by an earlier server, if it had drawn it."""
        path = self.folder / "plan.json"
        if not path.is_file():
            return None
        found = json.loads(path.read_text())
        if found["round_index"] != round_index:
            return None
        return Plan(round_index, found["nonce"], tuple(found["drawn"]))

    def write_roster(self, roster: Roster) -> None:
        """Write which sources the federation has in which rounds, before one of them is drawn."""
        durable.write(self.folder / "sources.json", json.dumps(roster.state_dict()) + "\n")

    def roster(self, sources_per_round: int | None) -> Roster | None:
        """Which sources an earlier server had in which rounds; ``None`` if they never changed."""
        path = self.folder / "sources.json"
        if not path.is_file():
            return None
        return Roster.from_state(json.loads(path.read_text()), sources_per_round)

    def write_embedding(self, source: str, embedding: SharedEmbedding, variant: str) -> Path:
        """Write a private embedding that a silo shares; returns the path of its file."""
        return embedding.write(self.folder, source, {"variant": variant})

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def _paths(self) -> list[Path]:
        found = self.folder.glob("round*.pt")
        return sorted(found, key=lambda path: int(path.stem.removeprefix("round")))
