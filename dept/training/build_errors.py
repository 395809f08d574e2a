"""Turn an error of a library that cannot build a part of a yaml into one sentence with the key."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from traceback import walk_tb
from types import FrameType
from typing import Any

# Functions of llm-foundry and Composer, and the sections of the yaml that each of them receives.
SECTIONS = {
    "import_file": "code_paths",
    "ensure_folder_has_no_conflicting_files": "save_folder",
    "build_tokenizer": "tokenizer",
    "build_scheduler": "scheduler",
    "build_logger": "loggers",
    "build_callback": "callbacks",
    "build_algorithm": "algorithms",
    "build_evaluators": "eval_loader, icl_tasks or eval_gauntlet",
    "build_dataloader": "train_loader",
    "build_composer_model": "model",
    "build_optimizer": "optimizer",
    "process_init_device": "model or fsdp_config",
    "validate_config": "model, train_loader or eval_loader",
}
NAN = "Train loss contains a NaN."  # Composer's NaNMonitor


def sentence(error: Exception, config: Mapping[str, Any]) -> str | None:
    """The message about an error that ended a run; ``None`` if it needs a traceback.

    Until the first step has been taken, the yaml or the machine is the cause of an error.

    Args:
        error: the error that ended the run.
        config: the resolved yaml, as plain containers.
    """
    doing: str | None = "cannot be built"
    codes = [frame.f_code for frame in _frames(error)]
    if any(code.co_name == "fit" for code in codes):  # of Composer's trainer
        first_step = sys.modules.get("dept.training.first_step")
        is_taken = first_step is not None and first_step.FirstStep.is_taken
        doing = None if is_taken else "does not take a first step"
    if str(error) == NAN:
        return (
            "the loss is NaN, and the run stops before it trains on that: metrics.jsonl has the "
            "earlier batches; lower optimizer.lr, or check the data"
        )
    if doing is None:
        return None
    what = "".join(letter if letter.isprintable() else " " for letter in str(error))
    what = " ".join(what.split()) or "no reason given"
    what = what if len(what) <= 400 else what[:400] + " ..."
    key = _key(error, config) or "what the yaml asks for"
    return f"{key} {doing}: {what.rstrip('.')} ({type(error).__name__}); --debug shows where"


def _key(error: Exception, config: Mapping[str, Any]) -> str | None:
    """The key that an error is about, found by the code that raised it or by its builder."""
    if isinstance(getattr(error, "full_key", None), str):  # of OmegaConf, which checks types
        return error.full_key
    codes = [frame.f_code for frame in _frames(error)]
    registered = sys.modules.get("dept.training.registered")
    if registered is not None:  # otherwise nothing has been built yet
        keys = registered.keys_by_code(config)
        found = [keys[code] for code in codes if code in keys]
        if found:
            return found[0]
    return next((SECTIONS[c.co_name] for c in codes if c.co_name in SECTIONS), None)


def _frames(error: Exception) -> Iterator[FrameType]:
    return (frame for frame, _ in walk_tb(error.__traceback__))
