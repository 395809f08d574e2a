"""Files of sources: the state of each source, which only its worker has.

``<folder>/<source>/round<r>-step<s>.pt`` holds the whole state of a source after ``s`` local steps
of round ``r`` (from 0), except the global parameters, which are in a checkpoint of the same round.
Sources are independent until a round ends, so files of one round fit together whatever their steps,
and whichever worker wrote them. Therefore no worker waits for another to make a checkpoint in
mid-round, and any number of workers can resume from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dept.checkpoint import durable

FOLDER = "sources"
"""Name of the folder, beside the checkpoints that its files belong to."""

_NAME = re.compile(r"round(\d+)-step(\d+)\.pt")

State = tuple[int, int]
"""Round and step of a file."""


def name_of(source: str, state: State) -> str:
    """Path of the file of a state, relative to the folder of all sources.

    Args:
        source: name of the source.
        state: round (from 0) and local steps of the state.
    """
    return f"{source}/round{state[0]}-step{state[1]}.pt"


def states_among(names: Iterable[str], source: str) -> list[State]:
    """The states of a source among names below the folder of all sources, ascending.

    Args:
        names: paths of files, relative to the folder of all sources. Other names are skipped.
        source: name of the source.

    Returns:
        Round (from 0) and local steps of each state.
    """
    inside = (name.split("/")[-1] for name in names if name.rpartition("/")[0] == source)
    return sorted((int(m[1]), int(m[2])) for m in map(_NAME.fullmatch, inside) if m)


def read_by(states: Sequence[State], round_index: int) -> list[State]:
    """The states of a source that a checkpoint in ``round_index`` may read.

    Args:
        states: states of one source, ascending.
        round_index: round of the checkpoint, from 0.

    Returns:
        The states up to this round, from the last one between rounds (of step 0) on; all of them if
        there is none.
    """
    before = [state for state in states if state[0] <= round_index]
    starts = [at for at, (_, step) in enumerate(before) if step == 0]
    return before[starts[-1] :] if starts else before


def outdated(states: Sequence[State], oldest_round: int, steps_to_keep: int) -> list[State]:
    """The states that no checkpoint needs any more.

    Args:
        states: states of a source, ascending.
        oldest_round: round of the oldest checkpoint that is kept.
        steps_to_keep: how many of the newest files of one round to keep, in addition to its first.
    """
    before = [state for state in states if state <= (oldest_round, 0)]
    between = [state for state in before if state[1] == 0]
    if before:
        before.remove((between or before)[-1])
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
        """Write a file that is whole or not there, whenever the process dies.

        Args:
            source: name of the source.
            round_index: round of the state, from 0.
            step: local steps that the slot of this round has taken; 0 between rounds.
            state: the state, in values that ``torch.load`` reads with ``weights_only``.

        Returns:
            The path of the file.

        Raises:
            OSError: the disk does not take it. Torch raises a ``RuntimeError`` for some failed
                writes.
        """
        import torch  # here, since commands that only look at folders have no use for it

        path = self._path(source, round_index, step)
        with durable.replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(dict(state), file)  # with a path, torch would write its name into the file
        return path

    def read(self, source: str, round_index: int, step: int | None = None) -> dict[str, Any] | None:
        """The newest state of a source that fits a checkpoint in round ``round_index``.

        Args:
            source: its name.
            round_index: round of the checkpoint. A state between earlier rounds fits as well, if
                the source was not drawn since. A state within one does not: it is of a job that
                did not end that round, and whose sources may have been others.
            step: the latest step of this round that may be read; any by default.

        Returns:
            The state that was written; ``None`` if there is none.

        Raises:
            ValueError: the file is not as it was written.
        """
        states = [
            (r, s)
            for r, s in self.states(source)
            if (r < round_index and s == 0) or (r == round_index and (step is None or s <= step))
        ]
        if not states:
            return None
        return self.load(source, max(states))

    def load(self, source: str, state: State) -> dict[str, Any]:
        """Read the file of a source with the given round and step.

        It opens the file by its name, since listings of a shared folder may be a minute old.

        Args:
            source: name of the source.
            state: round (from 0) and local steps of the file.

        Returns:
            The state that was written, its tensors on the CPU.

        Raises:
            ValueError: the file is missing, or is not as it was written.
        """
        path = self._path(source, *state)
        if not durable.is_whole(path):
            raise ValueError(
                f"{path} is cut short or was altered since it was written: remove it and the "
                f"checkpoints after it, to resume from an earlier one"
            )
        import torch

        return torch.load(path, map_location="cpu", weights_only=True)

    def torn(self, round_index: int) -> tuple[list[Path], bool]:
        """Find damaged files that a checkpoint in round ``round_index`` would read.

        Returns:
            ``(torn, is_enough)``: the damaged files of all sources, and whether the checkpoint can
            be resumed without them, from an earlier state of the same round.
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
        """Remove the file of a state, if it is there.

        Args:
            source: name of the source.
            state: round (from 0) and local steps of the file.
        """
        self._path(source, *state).unlink(missing_ok=True)

    def prune(self, source: str, *, oldest_round: int, steps_to_keep: int) -> None:
        """Remove the files that no checkpoint needs any more (:func:`outdated`).

        Args:
            source: name of the source.
            oldest_round: round of the oldest checkpoint that is kept, from 0.
            steps_to_keep: how many of the newest files of one round to keep, in addition to its
                first.
        """
        for state in outdated(self.states(source), oldest_round, steps_to_keep):
            self.remove(source, state)

    def sweep(self, sources: Sequence[str]) -> None:
        """Remove partial files of these sources that a killed process left."""
        for source in sources:
            durable.sweep(self.folder / source)

    def _path(self, source: str, round_index: int, step: int) -> Path:
        return self.folder / name_of(source, (round_index, step))
