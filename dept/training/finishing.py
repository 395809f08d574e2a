"""Finish a run that died between its last checkpoint and its summary."""

from __future__ import annotations

from composer.core import Callback, State, Time
from composer.loggers import Logger


class Finishing(Callback):
    """Lets a run with nothing left to train finish, although Composer refuses to train it.

    Composer checks the duration before training starts, so until then the duration is made a little
    longer. The checkpoint already includes everything after the last round. This callback must be
    listed before callbacks that read the duration when training starts.
    """

    def __init__(self) -> None:
        self._duration: Time | None = None

    def after_load(self, state: State, logger: Logger) -> None:
        duration = state.max_duration
        if duration is not None and state.timestamp >= duration:
            self._duration = duration
            state.max_duration = state.timestamp.get(duration.unit) + Time(1, duration.unit)

    def fit_start(self, state: State, logger: Logger) -> None:
        if self._duration is not None:
            state.max_duration, self._duration = self._duration, None
            state.evaluators = []
