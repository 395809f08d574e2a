"""Know whether training has begun: an error before that is about the yaml or the machine."""

from __future__ import annotations

from composer.core import Callback, State
from composer.loggers import Logger


class FirstStep(Callback):
    """Records whether the newest trainer of this process has taken a step.

    Attributes:
        is_taken: of the class, for ``dept/training/build_errors.py``, which has no trainer.
    """

    is_taken = False

    def init(self, state: State, logger: Logger) -> None:
        FirstStep.is_taken = False

    def batch_end(self, state: State, logger: Logger) -> None:
        FirstStep.is_taken = True
