"""Names in yamls: callbacks and loggers of this repository in llm-foundry's registries."""

from llmfoundry import registry

from callbacks.active_forgetting import ActiveForgetting
from callbacks.best_checkpoint import BestCheckpoint
from callbacks.checkpoints import Checkpoints
from callbacks.jsonl_logger import JsonlLogger
from callbacks.norms import Norms
from callbacks.progress import RunProgress
from callbacks.run_files import RunFiles
from callbacks.source_metrics import SourceMetrics
from callbacks.stop_on_sigterm import StopOnSigterm


def register() -> None:
    """Make the names known."""
    registry.loggers.register("jsonl", func=JsonlLogger)
    registry.callbacks.register("active_forgetting", func=ActiveForgetting)
    registry.callbacks.register("best_checkpoint", func=BestCheckpoint)
    registry.callbacks.register("checkpoints", func=Checkpoints)
    registry.callbacks.register("stop_on_sigterm", func=StopOnSigterm)
    registry.callbacks.register("norms", func=Norms)
    registry.callbacks.register("progress", func=RunProgress)
    registry.callbacks.register("source_metrics", func=SourceMetrics)
    registry.callbacks_with_config.register("run_files", func=RunFiles)
