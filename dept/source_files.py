"""Files of sources: what only its worker knows of a source, in a file of its own.

``<folder>/<source>/round<r>-step<s>.pt`` is all there is of a source after ``s`` local steps of
round ``r`` (from 0), beside the global parameters: those of a checkpoint of the same round. Until
a round ends, sources know nothing of each other, so files of one round fit together whatever
their steps, and whoever wrote them. That is why no worker waits for another to make a checkpoint
in mid-round, and why any number of workers can go on from it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

FOLDER = "sources"
"""Name of the folder, beside the checkpoints that it belongs to."""

_NAME = re.compile(r"round(\d+)-step(\d+)\.pt")
_TEMPORARY = re.compile(r"\.round\d+-step\d+\.pt\.\d+")


class SourceFiles:
    """The files of all sources below one folder.

    Args:
        folder: may not exist yet.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def write(self, source: str, round_index: int, step: int, state: Mapping[str, Any]) -> Path:
        """Write a file that is whole or not there, whenever the process dies."""
        path = self.folder / source / f"round{round_index}-step{step}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with open(temporary, "wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
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
        """
        states = [
            (r, s)
            for r, s in self.states(source)
            if r < round_index or (r == round_index and (step is None or s <= step))
        ]
        if not states:
            return None
        newest = "round{}-step{}.pt".format(*max(states))
        return torch.load(self.folder / source / newest, map_location="cpu", weights_only=True)

    def states(self, source: str) -> list[tuple[int, int]]:
        """Round and step of each file of a source, ascending."""
        names = (_NAME.fullmatch(path.name) for path in (self.folder / source).glob("round*.pt"))
        return sorted((int(name[1]), int(name[2])) for name in names if name)

    def prune(self, source: str, *, oldest_round: int, steps_to_keep: int) -> None:
        """Remove what no checkpoint needs any more.

        Args:
            source: its name.
            oldest_round: round of the oldest checkpoint that is kept.
            steps_to_keep: how many of the newest files of one round to keep, beside its first.
        """
        states = self.states(source)
        outdated = [state for state in states if state <= (oldest_round, 0)][:-1]
        newest_round = states[-1][0] if states else 0
        in_round = [state for state in states if state[0] == newest_round and state[1] > 0]
        for r, s in [*outdated, *in_round[:-steps_to_keep]]:
            (self.folder / source / f"round{r}-step{s}.pt").unlink(missing_ok=True)

    def sweep(self, sources: Sequence[str]) -> None:
        """Remove the torn beginnings of files that a killed process left; of its sources only."""
        for source in sources:
            for path in (self.folder / source).glob(".round*.pt.*"):
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)
