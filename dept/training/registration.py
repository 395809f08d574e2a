"""The names that this repository adds to llm-foundry's registries.

Names that a yaml without DEPT may use are also entry points (pyproject.toml), which llm-foundry
prefers. The others are only registered here: their names are common, and an entry point would
override a callback of the same name that a user registers.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.core import DataSpec
from composer.loggers import FileLogger
from composer.utils import dist
from llmfoundry import registry
from llmfoundry.data.utils import get_tokens_per_batch_func
from llmfoundry.layers_registry import attention_implementations
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from dept.callbacks.frozen_start import FrozenStart
from dept.callbacks.norms import Norms
from dept.checkpoint import trust
from dept.checkpoint.saver import Checkpoints
from dept.checkpoint.sigterm import StopOnSigterm
from dept.config import icl
from dept.config.options import (
    CorpusOptions,
    MixtureOptions,
    SourcesOptions,
    ValidationOptions,
    parse,
)
from dept.data.corpus import GLOBAL, PreparedSource, read_corpus
from dept.data.fetch import fetch_corpus
from dept.data.loader import OpenSource, SourceLoader, ValidationLoader
from dept.data.mixture import Mixture
from dept.data.shard_cache import ShardCache
from dept.method.fused_attention import fused_attention
from dept.method.outer_optimizer import TORCH_OPTIMIZERS
from dept.training import registered
from dept.training.active_forgetting import ActiveForgetting
from dept.training.algorithm import Dept
from dept.training.best_checkpoint import BestCheckpoint
from dept.training.finishing import Finishing
from dept.training.first_step import FirstStep
from dept.training.fused_model import FUSED, MPTCausalLM
from dept.training.jsonl_logger import JsonlLogger
from dept.training.learning_rate import SequentialStepsScheduler
from dept.training.progress import RunProgress
from dept.training.run_files import RunFiles
from dept.training.source_checkpoints import SourceCheckpoints
from dept.training.source_metrics import SourceMetrics
from dept.training.start_from import StartFrom
from dept.training.wandb_logger import WandB
from dept.transport import process_group


def build_sources(
    *,
    tokenizer: PreTrainedTokenizerBase,
    device_batch_size: int,
    own_tokenizers: bool = False,
    **options: Any,
) -> DataSpec:
    """``train_loader: {name: sources}``: one source after another, for DEPT.

    Args:
        tokenizer: unused, every source is read as its shards were written.
        device_batch_size: samples in a batch.
        own_tokenizers: read each source in the tokens of its own tokenizer; set by the variant.
        options: see :class:`dept.config.options.SourcesOptions`.
    """
    chosen = parse(SourcesOptions, "train_loader", options)
    prepared = _prepared(chosen, own_tokenizers=own_tokenizers)
    place = process_group.current().place
    loader = SourceLoader(
        prepared,
        batch_size=device_batch_size,
        seed=chosen.seed,
        stage=chosen.stage,
        place=place,
        block_shards=chosen.block_shards,
        remote=chosen.remote,
        cache_limit=chosen.cache_bytes,
        find=partial(_find, chosen, own_tokenizers=own_tokenizers),
    )
    # A batch also has its source and step, from which Composer cannot count samples.
    return DataSpec(
        loader,
        get_num_samples_in_batch=lambda batch: len(batch["input_ids"]),
        get_num_tokens_in_batch=get_tokens_per_batch_func(),
    )


def build_validation(
    *, tokenizer: PreTrainedTokenizerBase, device_batch_size: int, **options: Any
) -> DataSpec:
    """``eval_loader: [{label: en, name: validation, ...}]``: the validation split of a source.

    Args:
        tokenizer: unused, the split is read as its shards were written.
        device_batch_size: samples in a batch.
        options: see :class:`dept.config.options.ValidationOptions`.
    """
    chosen = parse(ValidationOptions, "eval_loader", options)
    if chosen.remote is not None:
        fetch_corpus(
            chosen.remote,
            chosen.root,
            chosen.corpus,
            [chosen.source],
            own_tokenizers=chosen.written_with != GLOBAL,
            held_out=chosen.held_out,
        )
    prepared = read_corpus(Path(chosen.root), chosen.corpus).source(
        chosen.source, chosen.written_with
    )
    loader = ValidationLoader(
        prepared,
        batch_size=device_batch_size,
        held_out=chosen.held_out,
        remote=chosen.remote,
    )
    return DataSpec(loader, get_num_tokens_in_batch=get_tokens_per_batch_func())


def build_mixture(
    *, tokenizer: PreTrainedTokenizerBase, device_batch_size: int, **options: Any
) -> DataSpec:
    """``train_loader: {name: mixture}``: all sources mixed in every batch (STD).

    Args:
        tokenizer: the global tokenizer.
        device_batch_size: samples in a batch.
        options: see :class:`dept.config.options.MixtureOptions`.
    """
    chosen = parse(MixtureOptions, "train_loader", options)
    prepared = _prepared(chosen, own_tokenizers=False)
    cache = ShardCache(chosen.cache_bytes) if chosen.remote else None
    sources = {
        name: OpenSource(
            source,
            seed=chosen.seed,
            stage=chosen.stage,
            block_shards=chosen.block_shards,
            remote=chosen.remote,
            cache=cache,
        )
        for name, source in prepared.items()
    }
    mixture = Mixture(
        sources,
        tokens={name: source.splits["train"].tokens for name, source in prepared.items()},
        tau=chosen.tau,
        epoch_batches=chosen.epoch_batches,
        batch_size=device_batch_size,
        rank=dist.get_global_rank(),
        ranks=dist.get_world_size(),
        seed=chosen.seed,
        stage=chosen.stage,
        cache=cache,
    )
    # Composer only resumes datasets of a DataLoader.
    loader = DataLoader(mixture, batch_size=None, pin_memory=torch.cuda.is_available())
    return DataSpec(loader, get_num_tokens_in_batch=get_tokens_per_batch_func())


def _prepared(options: CorpusOptions, *, own_tokenizers: bool) -> dict[str, PreparedSource]:
    corpus = read_corpus(Path(options.root), options.corpus)
    names = corpus.sources if options.sources is None else options.sources
    return {name: corpus.source(name, name if own_tokenizers else GLOBAL) for name in names}


def _find(options: CorpusOptions, source: str, *, own_tokenizers: bool) -> PreparedSource:
    corpus = read_corpus(Path(options.root), options.corpus)
    return corpus.source(source, source if own_tokenizers else GLOBAL)


def register() -> None:
    """Register the names, and torch's optimizers, of which llm-foundry registers few."""
    registry.algorithms.register("dept", func=Dept)
    registry.schedulers.register("sequential_steps", func=SequentialStepsScheduler)
    registry.dataloaders.register("sources", func=build_sources)
    registry.dataloaders.register("validation", func=build_validation)
    registry.dataloaders.register("mixture", func=build_mixture)
    registry.models.register("mpt_causal_lm", func=MPTCausalLM)  # it takes `fused` too
    attention_implementations.register(FUSED, func=fused_attention)
    registry.loggers.register("file_logger", func=FileLogger)  # llm-foundry does not register it
    registry.loggers.register("jsonl", func=JsonlLogger)
    registry.loggers.register("wandb", func=WandB)
    registry.callbacks.register("active_forgetting", func=ActiveForgetting)
    registry.callbacks.register("best_checkpoint", func=BestCheckpoint)
    registry.callbacks.register("checkpoints", func=Checkpoints)
    registry.callbacks.register("finishing", func=Finishing)
    registry.callbacks.register("first_step", func=FirstStep)
    registry.callbacks.register("frozen_start", func=FrozenStart)
    registry.callbacks.register("norms", func=Norms)
    registry.callbacks.register("progress", func=RunProgress)
    registry.callbacks.register("source_checkpoints", func=SourceCheckpoints)
    registry.callbacks.register("source_metrics", func=SourceMetrics)
    registry.callbacks.register("stop_on_sigterm", func=StopOnSigterm)
    registry.callbacks_with_config.register("run_files", func=RunFiles)
    registry.callbacks_with_config.register("start_from", func=StartFrom)
    registry.config_transforms.register("registered", func=registered.check)
    icl.register()
    trust.guard_resumption()
    for name, optimizer in TORCH_OPTIMIZERS.items():
        if name not in registry.optimizers:
            registry.optimizers.register(name, func=optimizer)
