"""One line about the progress of a run: round, source, loss, speed and remaining time."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta

from composer.core import Callback, State, TimeUnit
from composer.loggers import Logger
from composer.utils import dist
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dept.training.algorithm import dept_of
from dept.transport import process_group


class RunProgress(Callback):
    """Shows a progress bar on a terminal, or prints a line for each round if there is none.

    An epoch is called a round. The source is shown if the algorithm trains one at a time.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._source = ""
        self._losses: dict[str, float] = {}
        self._began = (0.0, 0, 0)
        self._total = "?"

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() != 0:
            return
        timestamp, duration = state.timestamp, state.max_duration
        # Kept, since whoever stops training early sets the duration to the batches so far.
        self._total = str(duration.value) if duration.unit == TimeUnit.EPOCH else "?"
        self._began = (time.monotonic(), timestamp.batch.value, timestamp.token.value)
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.add_task("", total=_batches(state), completed=timestamp.batch.value)
            self._bar.start()

    def batch_start(self, state: State, logger: Logger) -> None:
        dept = dept_of(state)
        self._source = (dept.run.slots.active if dept is not None else None) or ""

    def batch_end(self, state: State, logger: Logger) -> None:
        loss = state.total_loss_dict.get("loss/train/total", float("nan"))
        self._losses[self._source] = loss
        if self._bar is not None:
            source = f"{self._source} " if self._source else ""
            self._bar.update(
                self._bar.task_ids[0],
                completed=state.timestamp.batch.value,
                description=f"round {state.timestamp.epoch.value + 1}/{self._total}  {source}"
                f"loss {loss:.3f}  {self._rate(state):,.0f} tokens/s",
            )

    def eval_start(self, state: State, logger: Logger) -> None:
        if self._bar is not None:
            label = (state.dataloader_label or "").removeprefix("eval/")
            self._bar.update(self._bar.task_ids[0], description=f"evaluating {label}")

    def epoch_end(self, state: State, logger: Logger) -> None:
        # After the workers have synchronised, this includes sources that other workers trained.
        dept = dept_of(state)
        losses = {s: values[-1] for s, values in dept.losses.items()} if dept else self._losses
        self._losses = {}
        if self._bar is None and dist.get_global_rank() == 0:
            seconds, batches, _ = self._began
            done = state.timestamp.batch.value - batches
            left = max(_batches(state) - state.timestamp.batch.value, 0) / max(done, 1)
            left *= time.monotonic() - seconds
            each = "  ".join(f"{source} {loss:.2f}".strip() for source, loss in losses.items())
            with contextlib.suppress(OSError):  # the disk of the log may be full
                self._console.print(
                    f"round {state.timestamp.epoch.value}/{self._total}  loss {each}  "
                    f"{self._rate(state):,.0f} tokens/s  {timedelta(seconds=round(left))} left",
                    soft_wrap=True,
                    highlight=False,
                )

    def fit_end(self, state: State, logger: Logger) -> None:
        self.close(state, logger)

    def close(self, state: State, logger: Logger) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _rate(self, state: State) -> float:
        seconds, _, tokens = self._began
        done = (state.timestamp.token.value - tokens) * process_group.current().count
        return done / max(time.monotonic() - seconds, 1e-9)


def _batches(state: State) -> int:
    duration, dept = state.max_duration, dept_of(state)
    if dept is not None and duration.unit == TimeUnit.EPOCH:
        return dept.run.schedule.batches_before(duration.value)
    if duration.unit == TimeUnit.EPOCH:
        return duration.value * int(state.dataloader_len or 0)
    return duration.value if duration.unit == TimeUnit.BATCH else 0
