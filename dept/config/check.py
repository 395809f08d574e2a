"""Whether a yaml of this repository can run, found before the slow imports."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dept.checkpoint.run_folder import find_checkpoint
from dept.config import corpus_checks, dept_checks, icl, yaml_keys
from dept.config.options import CorpusOptions, DeptOptions, StartFromOptions, options_of, parse
from dept.errors import ConfigError, shown


def check(config: Mapping[str, Any], *, any_name: bool = False) -> list[str]:
    """Refuse a yaml that cannot run, before libraries that take half a minute to import.

    Args:
        config: a resolved yaml, as plain containers.
        any_name: whether unknown names are accepted, since a program may have registered them.

    Returns:
        Notes on a yaml that can run, one sentence each.

    Raises:
        ConfigError: a key or value is wrong.
        DataError: the corpus is missing, half-written or of another tokenizer.
    """
    try:
        return _check(config, any_name)
    except OSError as error:  # a name too long for a file, a folder that may not be read
        raise ConfigError(
            f"{shown(error.filename)} cannot be read ({error.strerror}): name another path"
        ) from None


def _check(config: Mapping[str, Any], any_name: bool) -> list[str]:
    dept, loader = options_of(config)
    yaml_keys.check(config, whole=loader is not None, any_name=any_name)
    for path in config.get("code_paths") or ():
        if not Path(path).is_file():
            raise ConfigError(f"code_paths names {path}, which does not exist: name a file")
    tasks = icl.tasks_of(config)
    icl.check_files(tasks)
    start_from = (config.get("callbacks") or {}).get("start_from")
    if start_from is not None:
        start_from = parse(StartFromOptions, "callbacks.start_from", start_from)
        find_checkpoint(start_from.checkpoint)
        _check_start_from(start_from, dept, loader)
    if loader is None:
        return []
    _check_parts(config, dept, loader)
    names, prepared = corpus_checks.check(config, dept, loader)
    if dept is None:
        return []
    icl.check_embedding(tasks, dept, names)
    schedule = dept_checks.check(config, dept, names)
    batch = config["global_train_batch_size"]
    return dept_checks.note_on_chances(schedule) + [
        f"source {source.name} has {source.splits['train'].samples} samples, fewer than a batch of "
        f"{batch}, which holds some of them more than once"
        for source in prepared
        if source.splits["train"].samples < batch
    ]


def _check_parts(
    config: Mapping[str, Any], dept: DeptOptions | None, loader: CorpusOptions
) -> None:
    """Check values that each have the right type, but may not fit together."""
    _check_model(config["model"], config["max_seq_len"])
    callbacks = config.get("callbacks") or {}
    for name in ("run_files", "best_checkpoint"):
        if name in callbacks and "source_metrics" not in callbacks:
            raise ConfigError(f"callbacks.{name} needs source_metrics beside it: add that")
    for name in ("active_forgetting", "best_checkpoint", "frozen_start"):
        if name in callbacks and dept is not None:
            raise ConfigError(f"callbacks.{name} is for baselines: remove it, or algorithms.dept")
    if config.get("eval_loader") and config.get("eval_loaders"):
        raise ConfigError("eval_loader and eval_loaders say the same: remove one of them")
    batch, processes = config["global_train_batch_size"], int(os.environ.get("WORLD_SIZE", 1))
    if dept is None and batch % processes:
        raise ConfigError(
            f"global_train_batch_size is {batch}: set it to a multiple of the {processes} processes"
        )


def _check_model(model: Mapping[str, Any], length: int) -> None:
    if model["name"] != "mpt_causal_lm":
        return
    width, heads = model.get("d_model", 2048), model.get("n_heads", 16)
    if width % heads:
        raise ConfigError(
            f"model.d_model is {width}, which model.n_heads = {heads} do not divide: set it to "
            f"{width // heads * heads or heads}"
        )
    positions = model.get("max_seq_len", 2048)
    if positions < length:
        raise ConfigError(
            f"model.max_seq_len is {positions}, and samples have {length} tokens: set it to "
            f"{length} or more"
        )


def _check_start_from(
    start_from: StartFromOptions, dept: DeptOptions | None, loader: CorpusOptions | None
) -> None:
    if loader is None:
        raise ConfigError(
            "callbacks.start_from trains sources of a prepared corpus: set train_loader.name "
            "to mixture, or to sources with algorithms.dept"
        )
    if dept is None:
        return
    if dept.sharing.has_global_embedding:
        raise ConfigError(
            f"callbacks.start_from adds sources with embeddings of their own, and "
            f"algorithms.dept.variant is {dept.variant}: set it to spec or spec_opt"
        )
    if start_from.embedding == "pretrained":
        raise ConfigError(
            "callbacks.start_from.embedding is pretrained, and a new source has none: set it to "
            "random or merged"
        )
