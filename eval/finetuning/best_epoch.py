"""Metrics of each evaluation, and the best epoch: chosen on `val`, reported on `test`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from dept.log import log


class BestEpoch(Callback):
    """Keeps the metrics of each evaluation, also over a kill and resume.

    Args:
        metric: name of the metric that evaluations are compared by; higher is better.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.history: list[dict[str, Any]] = []

    def eval_after_all(self, state: State, logger: Logger) -> None:
        time = state.timestamp
        found = {
            split: {name: float(metric.compute()) for name, metric in metrics.items()}
            for split, metrics in state.eval_metrics.items()
        }
        self.history.append({"epoch": time.epoch.value, "batch": time.batch.value, **found})
        if dist.get_global_rank() == 0:
            texts = ", ".join(f"{split} {of[self.metric]:.3f}" for split, of in found.items())
            log.info(f"epoch {time.epoch.value}, batch {time.batch.value}: {self.metric} {texts}")

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = state["history"]


def best(history: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The first evaluation with the highest metric on ``val``; one that is no number is lowest.

    Args:
        history: evaluations in the order of epochs; ``entry["val"]`` has the value of each metric.
        metric: name of the metric.

    Returns:
        The entry of ``history``.
    """

    def value_of(entry: dict[str, Any]) -> float:
        value = entry["val"][metric]
        return value if math.isfinite(value) else -math.inf

    return max(history, key=value_of)
