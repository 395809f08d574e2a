"""The end of a run that died between its last checkpoint and its summary."""

from __future__ import annotations

import importlib
from typing import Any

from composer import Trainer

from dept.errors import ConfigError, DataError, NotSaved, NumericalFault, WorkerLost
from dept.training.build_errors import FirstStepFailed

SENTENCES = (ConfigError, DataError, NotSaved, NumericalFault, WorkerLost)
"""Errors that train.py shows as they are."""


class FinishingTrainer(Trainer):
    """Composer's trainer, which with nothing left to train goes to the end instead of refusing."""

    def fit(self, *args: Any, **options: Any) -> None:
        """As Composer's; all that follows the last round has been seen by the checkpoint.

        Raises:
            FirstStepFailed: an error of a library, before the first step.
        """
        duration = self.state.max_duration
        if duration is None or args or options or self.state.timestamp < duration:
            try:
                super().fit(*args, **options)
            except SENTENCES:
                raise
            except Exception as error:
                if self.state.timestamp.batch.value > 0:
                    raise
                raise FirstStepFailed(str(error)) from error
            return
        self.state.evaluators = []
        self.spin_dataloaders = False
        self._train_loop()


def register() -> None:
    """Let llm-foundry build this one; it has no registry of trainers."""
    importlib.import_module("llmfoundry.command_utils.train").Trainer = FinishingTrainer  # type: ignore[attr-defined]
