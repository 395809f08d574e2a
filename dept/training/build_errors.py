"""What a library says when it cannot build what a yaml asks for, as one sentence with the key."""

from __future__ import annotations

from types import TracebackType
from typing import Any

# Builders of llm-foundry, and what of the yaml each of them is given; `{name}` is their argument.
SECTIONS = {
    "import_file": "code_paths",
    "make_dataclass_and_log_config": "a key of the yaml",
    "build_tokenizer": "tokenizer",
    "build_scheduler": "scheduler",
    "build_logger": "loggers.{name}",
    "build_callback": "callbacks.{name}",
    "build_algorithm": "algorithms.{name}",
    "build_dataloader": "train_loader",
    "build_evaluators": "eval_loaders, icl_tasks or eval_gauntlet",
    "build_composer_model": "model",
    "build_optimizer": "optimizer",
}
NAN = "Train loss contains a NaN."  # Composer's NaNMonitor


def sentence(error: Exception) -> str | None:
    """What to say of an error that a run ended with; ``None`` if only its traceback would do.

    Until a first step has been taken, what goes wrong is a matter of the yaml and the machine.
    """
    if str(error) == NAN:
        return (
            "the loss is NaN, and the run stops before it trains on that: metrics.jsonl has the "
            "batches before; lower optimizer.lr, or look at the data"
        )
    frames = list(_frames(error.__traceback__))
    trainer = next((f["self"] for n, f in frames if n == "fit" and "self" in f), None)
    if trainer is not None and trainer.state.timestamp.batch.value > 0:
        return None
    doing = "what the yaml asks for cannot be built"
    for name, variables in frames:
        if name in SECTIONS:
            doing = f"{SECTIONS[name].format(name=variables.get('name'))} cannot be built"
            break
    else:
        if trainer is not None:
            doing = "the first step cannot be taken"
    what = " ".join(str(error).split()) or "no reason given"
    what = what if len(what) <= 400 else what[:400] + " ..."
    return f"{doing}: {what.rstrip('.')} ({type(error).__name__}); --debug shows where"


def _frames(traceback: TracebackType | None) -> Any:
    while traceback is not None:
        yield traceback.tb_frame.f_code.co_name, traceback.tb_frame.f_locals
        traceback = traceback.tb_next
