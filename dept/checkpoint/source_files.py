"""Files of sources: what only its worker knows of a source, in a file of its own.

``<folder>/<source>/round<r>-step<s>.pt`` is all there is of a source after ``s`` local steps of
round ``r`` (from 0), beside the global parameters: those of a checkpoint of the same round. Until
a round ends, sources know nothing of each other, so files of one round fit together whatever
their steps, and whoever wrote them. That is why no worker waits for another to make a checkpoint
in mid-round, and why any number of workers can go on from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dept.checkpoint import durable

FOLDER = "sources"
"""Name of the folder, beside the checkpoints that it belongs to."""

_NAME = re.compile(r"round(\d+)-step(\d+)\.pt")

State = tuple[int, int]
"""Round and step of a file."""


def name_of(source: str, state: State) -> str:
    """Where the file of a state is, below the folder of all sources."""
    return f"{source}/round{state[0]}-step{state[1]}.pt"


def states_among(names: Iterable[str], source: str) -> list[State]:
    """The states of a source among names below the folder of all sources, ascending."""
    inside = (name.split("/")[-1] for name in names if name.rpartition("/")[0] == source)
    return sorted((int(m[1]), int(m[2])) for m in map(_NAME.fullmatch, inside) if m)


def read_by(states: Sequence[State], round_index: int) -> list[State]:
    """Which of a source's states a checkpoint in ``round_index`` may read; of none, nothing."""
    before = [state for state in states if state[0] <= round_index]
    starts = [at for at, (_, step) in enumerate(before) if step == 0]
    return before[starts[-1] :] if starts else before


def outdated(states: Sequence[State], oldest_round: int, steps_to_keep: int) -> list[State]:
    """Which states no checkpoint needs any more.

    Args:
        states: of a source, ascending.
        oldest_round: round of the oldest checkpoint that is kept.
        steps_to_keep: how many of the newest files of one round to keep, beside its first.
    """
    before = [state for state in states if state <= (oldest_round, 0)][:-1]
    newest_round = states[-1][0] if states else 0
    in_round = [state for state in states if state[0] == newest_round and state[1] > 0]
    return [*before, *in_round[:-steps_to_keep]]


class SourceFiles:
    """The files of all sources below one folder.

    Args:
        folder: may not exist yet.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def write(self, source: str, round_index: int, step: int, state: Mapping[str, Any]) -> Path:
        """Write a file that is whole or not there, whenever the process dies."""
        path = self._path(source, round_index, step)
        with durable.replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(dict(state), file)  # given a path, torch would write its name inside
        return path

    def read(self, source: str, round_index: int, step: int | None = None) -> dict[str, Any] | None:
        """The newest state of a source that fits a checkpoint in round ``round_index``.

        Args:
            source: its name.
            round_index: that of the checkpoint; states of earlier rounds fit as well, if the
                source was not drawn since.
            step: take none of this round after this step; any by default.

        Returns:
            What was written; ``None`` if there is nothing.

        Raises:
            ValueError: the file is not as it was written.
        """
        states = [
            (r, s)
            for r, s in self.states(source)
            if r < round_index or (r == round_index and (step is None or s <= step))
        ]
        if not states:
            return None
        return self.load(source, max(states))

    def load(self, source: str, state: State) -> dict[str, Any]:
        """What was written of a source at one state.

        Looks for the file by its name alone: lists of a shared folder may be a minute old.

        Raises:
            ValueError: the file is missing, or is not as it was written.
        """
        path = self._path(source, *state)
        if not durable.is_whole(path):
            raise ValueError(
                f"{path} is cut short or was altered since it was written: remove it and the "
                f"checkpoints after it, to go on from an earlier one"
            )
        return torch.load(path, map_location="cpu", weights_only=True)

    def torn(self, round_index: int) -> tuple[list[Path], bool]:
        """What a checkpoint in round ``round_index`` would read, and is not as it was written.

        Returns:
            ``(torn, is_enough)``: those files, of all sources, and whether the checkpoint can do
            without: where an earlier state of the same round is there to go on from.
        """
        torn, is_enough = [], True
        for folder in self.folder.glob("*/"):
            states = [state for state in self.states(folder.name) if state[0] <= round_index]
            lost = []
            while states and not durable.is_whole(self._path(folder.name, *states[-1])):
                lost.append(states.pop())
            torn += [self._path(folder.name, *state) for state in lost]
            if lost and not (states and states[-1][0] == lost[0][0] == round_index):
                is_enough = False
        return torn, is_enough

    def states(self, source: str) -> list[State]:
        """Round and step of each file of a source, ascending."""
        found = (self.folder / source).glob("round*.pt")
        return states_among((f"{source}/{path.name}" for path in found), source)

    def remove(self, source: str, state: State) -> None:
        """Remove the file of a state, if it is there."""
        self._path(source, *state).unlink(missing_ok=True)

    def prune(self, source: str, *, oldest_round: int, steps_to_keep: int) -> None:
        """Remove what no checkpoint needs any more, by :func:`outdated`."""
        for state in outdated(self.states(source), oldest_round, steps_to_keep):
            self.remove(source, state)

    def sweep(self, sources: Sequence[str]) -> None:
        """Remove the torn beginnings of files that a killed process left; of its sources only."""
        for source in sources:
            durable.sweep(self.folder / source)

    def _path(self, source: str, round_index: int, step: int) -> Path:
        return self.folder / name_of(source, (round_index, step))
