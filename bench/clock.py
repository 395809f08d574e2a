"""The callback of `make bench`, alike on both sides; a yaml names this file in `code_paths`."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from llmfoundry import registry

PROCESS = Path("/proc/self")


class Clock(Callback):
    """Writes the times of steps, rounds and evaluations of this process into a file.

    Wall-clock time is of a clock that all processes of the machine share; CPU time is of this
    process with all its threads.

    Args:
        path: the file; it is written when training ends.
        warm: batches at the start whose end is waited for on a GPU, as the end of training is.
        sleep: seconds to sleep at the start of each batch.
    """

    def __init__(self, path: str, warm: int = 0, sleep: float = 0.0) -> None:
        self.path, self.warm, self.sleep = Path(path), warm, sleep
        self.found: dict[str, Any] = {"began": [], "ended": [], "rounds": [], "evaluation": 0.0}
        self.found["baseline"] = _memory("VmRSS")
        if (PROCESS / "clear_refs").exists():
            (PROCESS / "clear_refs").write_text("5")  # forget the greatest memory so far

    def batch_start(self, state: State, logger: Logger) -> None:
        if len(self.found["began"]) == self.warm:
            self.found["warm"] = _now(wait=True)
            self.found["warm_cpu"] = time.process_time()
        self.found["began"].append(_now())
        if self.sleep:
            time.sleep(self.sleep)

    def batch_end(self, state: State, logger: Logger) -> None:
        self.found["ended"].append(_now())
        self.found["cpu"] = self.found["last_cpu"] = time.process_time()
        self.found.setdefault("first_cpu", self.found["cpu"])

    def epoch_end(self, state: State, logger: Logger) -> None:
        totals = next((a.totals for a in state.algorithms if hasattr(a, "totals")), {})
        between = totals.get("swap_seconds", 0.0) + totals.get("outer_step_seconds", 0.0)
        seconds = {"seconds": _now(wait=True), "between_steps": between}
        self.found["cpu"] = seconds["cpu"] = time.process_time()
        self.found["rounds"].append(seconds | {"evaluation": self.found["evaluation"]})

    def eval_before_all(self, state: State, logger: Logger) -> None:
        self.found["evaluation"] -= _now(wait=True)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self.found["evaluation"] += _now(wait=True)

    def fit_end(self, state: State, logger: Logger) -> None:
        self.found["end"] = _now(wait=True)
        self.found["memory"] = _memory("VmHWM")
        if torch.cuda.is_available():
            self.found["memory"] = torch.cuda.max_memory_allocated()
            self.found["baseline"] = 0
        self.path.write_text(json.dumps(self.found))


def _now(wait: bool = False) -> float:
    """Wall-clock time in seconds, after the GPU has done what it was given if ``wait``."""
    if wait and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _memory(field: str) -> int:
    """Bytes of this process, on Linux; else 0."""
    status = PROCESS / "status"
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


registry.callbacks.register("clock", func=Clock)
