"""Orderly end after SIGTERM, as schedulers send it: a checkpoint is taken first."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import torch
from composer.callbacks import CheckpointSaver
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist

from dept.checkpoint.epoch_end import ends_epoch
from dept.transport import process_group
from dept.transport.launcher import GRACE


class StopOnSigterm(Callback):
    """Ends training after SIGTERM, at the next point where checkpoints are taken.

    Callbacks that save call :meth:`asked` to know whether to save first. A SIGTERM outside of
    training ends the process at once. So does a second one after the checkpoint, since a launcher
    sends SIGTERM as soon as the first of its processes has ended.
    """

    def __init__(self) -> None:
        self._received: float | None = None
        self._decided: tuple[tuple[Event, int], bool] | None = None
        self._before: Any = None

    @property
    def received(self) -> bool:
        """Whether this process has been asked to end."""
        return self._received is not None

    def asked(self, state: State, event: Event) -> bool:
        """Whether any process of this world has been asked to end; the same on all of them.

        All of them must call this at the same event. After the last batch of an epoch, it waits for
        the other workers. If all arrive, the end of the epoch follows, and the checkpoint then
        includes the outer step of the round. If one of them stops instead, or is lost, this worker
        stops here, so that its finished slots are saved.

        Args:
            state: the state of Composer's trainer.
            event: the event at which all processes call it. One batch has one answer for each
                event.
        """
        now = (event, state.timestamp.batch.value)
        if self._decided is None or self._decided[0] != now:
            self._decided = (now, self._decide(state, event))
        return self._decided[1]

    def _decide(self, state: State, event: Event) -> bool:
        workers, epoch = process_group.current(), state.timestamp.epoch.value
        point = f"the end of epoch {epoch}"
        if event == Event.BATCH_CHECKPOINT and ends_epoch(state):
            return not workers.all_arrive(
                point,
                lambda: self._received is not None,
                stage=f"the outer step of round {epoch + 1}",
            )
        received = self._received is not None
        if dist.get_world_size() > 1:
            flag = state.device.tensor_to_device(torch.tensor([received], dtype=torch.uint8))
            dist.all_reduce(flag, reduce_operation="MAX")
            received = bool(flag.item())
        if received and event == Event.BATCH_CHECKPOINT:
            workers.stop_before(point)
        return received

    def fit_start(self, state: State, logger: Logger) -> None:
        # llm-foundry puts checkpoint savers last; if there is one, it ends the run.
        self._ends = not any(isinstance(c, CheckpointSaver) for c in state.callbacks)
        self._before = signal.signal(signal.SIGTERM, self._receive)
        if ends_epoch(state):  # a worker that is resumed at this point trains no batch
            self.end_if_asked(state, Event.BATCH_CHECKPOINT)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if self._ends:
            self.end_if_asked(state, Event.BATCH_CHECKPOINT)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        if self._ends:
            self.end_if_asked(state, Event.EPOCH_CHECKPOINT)

    def fit_end(self, state: State, logger: Logger) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def end_if_asked(self, state: State, event: Event) -> None:
        """End training, with the exit status of SIGTERM unless a worker is lost.

        Args:
            state: the state of Composer's trainer.
            event: the event at which all processes call it.

        Raises:
            SystemExit: a process of this world has been asked to end, or another worker has.
            WorkerLost: another worker is gone, or did not arrive in time.
        """
        if self.asked(state, event):
            signal.signal(signal.SIGTERM, self._before)
            if loss := process_group.current().loss:
                raise loss
            sys.exit(128 + signal.SIGTERM)

    def _receive(self, number: int, frame: Any) -> None:
        if self._received is None:
            self._received = time.monotonic()
        elif time.monotonic() - self._received > GRACE:
            signal.signal(signal.SIGTERM, self._before)
            signal.raise_signal(signal.SIGTERM)
