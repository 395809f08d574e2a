"""The model with the lowest validation loss so far, kept beside the checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger

from dept.checkpoint.saver import save_whole
from dept.errors import ConfigError
from dept.training.algorithm import dept_of
from dept.training.source_metrics import SourceMetrics, average


class BestCheckpoint(Callback):
    """Keeps the weights with the lowest validation loss, mean over the sources, as ``best.pt``.

    It serves methods whose last model is not their best one, such as active forgetting: the paper
    takes the best model within a cycle of forgetting, by validation perplexity.

    Args:
        folder: folder of the file; ``{run_name}`` stands for the name of the run.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.best: dict[str, Any] | None = None

    def init(self, state: State, logger: Logger) -> None:
        if dept_of(state) is not None:
            raise ConfigError(
                "callbacks.best_checkpoint keeps the model without the state of sources: remove "
                "it, since a run of DEPT ends with its newest checkpoint"
            )
        self.folder = Path(str(self.folder).format(run_name=state.run_name))

    def eval_after_all(self, state: State, logger: Logger) -> None:
        metrics = next(c for c in state.callbacks if isinstance(c, SourceMetrics))
        trained = [r for name, r in metrics.latest.items() if name not in metrics.held_out]
        if not trained:
            return
        loss = average(trained).loss
        if self.best is not None and loss >= self.best["loss"]:
            return
        if not save_whole(state, str(self.folder / "best.pt"), weights_only=True):
            return
        self.best = {"loss": loss, "batch": state.timestamp.batch.value}
        logger.log_metrics({"best/loss": loss, "best/batch": self.best["batch"]})

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
