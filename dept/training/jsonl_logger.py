"""Metrics as one JSON object per line, for any tool that reads text."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist
from torch import Tensor

from dept.checkpoint import durable
from dept.errors import NotSaved
from dept.log import log


class JsonlLogger(LoggerDestination):
    """Writes every metric to ``metrics.jsonl``, a line for each batch, evaluation and round.

    A resumed run continues from its checkpoint: lines that a killed run wrote after it are cut off,
    so that the file equals that of an uninterrupted run. If the disk is full, lines wait in memory
    and in checkpoints; at the end of the run they must be written.

    Args:
        path: path of the file; ``{run_name}`` stands for the name of the run.
    """

    def __init__(self, path: str = "runs/{run_name}/metrics.jsonl") -> None:
        self.path = Path(path)
        self._buffer: dict[str, Any] = {}
        self._resumed_at = 0
        self._now: dict[str, int] = {}
        self._waiting: list[str] = []
        self._is_told = False
        self._is_open = False

    def init(self, state: State, logger: Logger) -> None:
        self.path = Path(str(self.path).format(run_name=state.run_name))

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self._buffer |= {key: _plain(value) for key, value in metrics.items()}

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.truncate(min(self._resumed_at, file.tell()))
        self._buffer = {}
        self._is_open = True

    def batch_end(self, state: State, logger: Logger) -> None:
        self._flush(state)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._flush(state)

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        self._flush(state)

    def epoch_end(self, state: State, logger: Logger) -> None:
        self._flush(state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        self._flush(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        self._flush(state)
        if self._waiting:
            raise NotSaved(
                f"{len(self._waiting)} lines of {self.path} could not be written: make room on "
                f"that disk; the same command resumes from the last checkpoint"
            )

    def state_dict(self) -> dict[str, Any]:
        """The length of the file at the time of the checkpoint, and the lines not yet written."""
        self._write()  # lines that callbacks logged since, at the same step of training
        written = self.path.is_file() and dist.get_global_rank() == 0
        if written:
            with contextlib.suppress(OSError):
                durable.sync(self.path)  # these lines must survive a loss of power
        size = os.path.getsize(self.path) if written else 0
        return {"path": str(self.path), "bytes": size, "waiting": list(self._waiting)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["path"] == str(self.path):  # otherwise the checkpoint is of another run
            self._resumed_at = state["bytes"]
            self._waiting = list(state.get("waiting", ()))

    def _flush(self, state: State) -> None:
        time = state.timestamp
        self._now = {"epoch": time.epoch.value, "batch": time.batch.value}
        self._write()

    def _write(self) -> None:
        buffer, self._buffer = self._buffer, {}
        if buffer and dist.get_global_rank() == 0:
            self._waiting.append(json.dumps(self._now | buffer) + "\n")
        # An evaluation before training (`eval_first`) comes before the file is cut to its length.
        if not self._waiting or not self._is_open:
            return
        try:
            append(self.path, "".join(self._waiting).encode())
        except OSError as error:
            if not self._is_told:
                log.warning(
                    f"{self.path} could not be written ({error.strerror}): its lines are kept in "
                    f"memory, make room on that disk; training continues"
                )
            self._is_told = True
        else:
            self._waiting, self._is_told = [], False


def append(path: Path, data: bytes) -> None:
    """Append all of ``data`` to a file, or nothing.

    Args:
        path: path of the file; it is made if it does not exist.
        data: bytes to add at its end.

    Raises:
        OSError: the disk does not take it.
    """
    with open(path, "ab", buffering=0) as file:
        before, left = file.tell(), data
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)
            raise


def _plain(value: Any) -> Any:
    """A metric as a value of JSON; values that are not finite become text."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (int, float, str, bool, list, type(None))) else str(value)
