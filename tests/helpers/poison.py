"""A callback that spoils one step of one source; a run names this file in ``code_paths``."""

from composer.core import Callback
from llmfoundry import registry


class Poison(Callback):
    """Makes a loss NaN or infinite, or scales gradients behind their clipping, or weights.

    Args:
        what: ``loss``, ``gradients`` or ``weights``.
        by: factor.
        source: any by default.
        round: from 0; any by default.
        step: local step, from 0; any by default.
    """

    def __init__(self, what: str, by: float, source=None, round=None, step=None):
        self.what, self.by = what, float(by)
        self.at = (source, round, step)

    def is_now(self, state) -> bool:
        dept = next((a for a in state.algorithms if hasattr(a, "run")), None)
        source, step = (
            dept.run.plan[dept.run.begun - 1]
            if dept
            else (None, state.timestamp.batch_in_epoch.value)
        )
        now = (source, state.timestamp.epoch.value, step)
        return all(wanted in (None, here) for wanted, here in zip(self.at, now, strict=True))

    def before_backward(self, state, logger):
        if self.what == "loss" and self.is_now(state):
            state.loss = state.loss * self.by

    def after_train_batch(self, state, logger):
        if self.what == "loss" or not self.is_now(state):
            return
        for parameter in state.model.parameters():
            spoiled = parameter.data if self.what == "weights" else parameter.grad
            if spoiled is not None:
                spoiled *= self.by


registry.callbacks.register("poison", func=Poison)
