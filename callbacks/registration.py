"""Names in yamls: callbacks and loggers of this repository in llm-foundry's registries."""

from llmfoundry import registry

from callbacks.jsonl_logger import JsonlLogger
from callbacks.progress import RunProgress
from callbacks.run_files import RunFiles
from callbacks.source_metrics import SourceMetrics


def register() -> None:
    """Make the names known."""
    registry.loggers.register("jsonl", func=JsonlLogger)
    registry.callbacks.register("progress", func=RunProgress)
    registry.callbacks.register("source_metrics", func=SourceMetrics)
    registry.callbacks_with_config.register("run_files", func=RunFiles)
