"""Names in yamls: what this repository adds to llm-foundry's registries."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

from composer.core import DataSpec
from composer.utils import dist
from llmfoundry import registry
from llmfoundry.data.dataloader import build_dataloader
from llmfoundry.data.utils import get_tokens_per_batch_func
from transformers import PreTrainedTokenizerBase

from dept import config, finishing, icl, workers
from dept.algorithm import Dept
from dept.corpus import GLOBAL, PreparedSource, read_corpus
from dept.learning_rate import SequentialStepsScheduler
from dept.loader import SourceLoader, ValidationLoader
from dept.options import CorpusOptions, MixtureOptions, SourcesOptions, parse
from dept.outer_optimizer import TORCH_OPTIMIZERS
from dept.remote import address_of, fetch_corpus, share_cache
from dept.scratch import one_at_a_time
from dept.shard_files import HASH
from dept.source_checkpoints import SourceCheckpoints
from dept.start_from import StartFrom


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
        options: see :class:`dept.options.SourcesOptions`.
    """
    chosen = parse(SourcesOptions, "train_loader", options)
    prepared = _prepared(chosen, own_tokenizers=own_tokenizers)
    place = workers.current().place
    if chosen.remote:
        weakref.finalize(tokenizer, os.close, share_cache(chosen.root, chosen.corpus, alone=False))
    loader = SourceLoader(
        prepared,
        batch_size=device_batch_size,
        seed=chosen.seed,
        place=place,
        block_shards=chosen.block_shards,
        remote=chosen.remote,
        cache_limit=chosen.cache_bytes,
    )
    return DataSpec(loader, get_num_tokens_in_batch=get_tokens_per_batch_func())


def build_validation(
    *,
    tokenizer: PreTrainedTokenizerBase,
    device_batch_size: int,
    corpus: str,
    source: str,
    written_with: str = GLOBAL,
    held_out: bool = False,
    root: str = ".",
    remote: str | None = None,
) -> DataSpec:
    """``eval_loader: [{label: en, name: validation, ...}]``: the validation split of a source.

    Args:
        tokenizer: unused, the split is read as its shards were written.
        device_batch_size: samples in a batch.
        corpus: name of a prepared corpus.
        source: name of one of its sources, held-out ones included.
        written_with: ``global``, or the source's name for its own tokenizer.
        held_out: whether the run does not train on it: it is then left out of averages.
        root: folder that holds ``data/`` and ``tokenizers/``.
        remote: where to fetch the shards from that are not there.
    """
    if remote is not None:
        own = written_with != GLOBAL
        fetch_corpus(remote, root, corpus, [source], own_tokenizers=own, held_out=held_out)
    prepared = read_corpus(Path(root), corpus).source(source, written_with)
    loader = ValidationLoader(
        prepared, batch_size=device_batch_size, held_out=held_out, remote=remote
    )
    return DataSpec(loader, get_num_tokens_in_batch=get_tokens_per_batch_func())


def build_mixture(
    *, tokenizer: PreTrainedTokenizerBase, device_batch_size: int, **options: Any
) -> DataSpec:
    """``train_loader: {name: mixture}``: llm-foundry's text loader over all sources (STD).

    Args:
        tokenizer: the global tokenizer.
        device_batch_size: samples in a batch.
        options: see :class:`dept.options.MixtureOptions`.
    """
    chosen = parse(MixtureOptions, "train_loader", options)
    prepared = _prepared(chosen, own_tokenizers=False)
    batches = chosen.epoch_batches
    hashed = all(
        HASH in shard.hashes for source in prepared.values() for shard in source.shards("train")
    )
    dataset = {
        "streams": {
            name: {
                "local": str(source.train),
                "remote": chosen.remote and address_of(chosen.remote, source.train),
                "proportion": source.splits["train"].tokens ** float(chosen.tau),
            }
            for name, source in prepared.items()
        },
        "max_seq_len": next(iter(prepared.values())).sequence_length,
        "epoch_size": batches and batches * device_batch_size * dist.get_world_size(),
        "shuffle": True,
        "shuffle_seed": chosen.seed,
        "keep_zip": True,
        "cache_limit": chosen.cache_limit,
        "validate_hash": HASH if hashed else None,  # of what is fetched
    }
    text = {"name": "text", "dataset": dataset, "drop_last": True, "num_workers": 0}
    text |= {"persistent_workers": False, "prefetch_factor": None, "pin_memory": False}
    leads = dist.get_local_rank() == 0
    if chosen.remote and leads:
        weakref.finalize(tokenizer, os.close, share_cache(chosen.root, chosen.corpus, alone=True))
    with one_at_a_time("streaming", leads=leads):
        dist.barrier()  # no rank looks for a number before its job's turn
        return build_dataloader(text, tokenizer, device_batch_size)


def _prepared(options: CorpusOptions, *, own_tokenizers: bool) -> dict[str, PreparedSource]:
    corpus = read_corpus(Path(options.root), options.corpus)
    names = corpus.sources if options.sources is None else options.sources
    return {name: corpus.source(name, name if own_tokenizers else GLOBAL) for name in names}


def register() -> None:
    """Make the names known; optimizers of torch too, which llm-foundry knows few of."""
    registry.algorithms.register("dept", func=Dept)
    registry.schedulers.register("sequential_steps", func=SequentialStepsScheduler)
    registry.dataloaders.register("sources", func=build_sources)
    registry.dataloaders.register("validation", func=build_validation)
    registry.dataloaders.register("mixture", func=build_mixture)
    registry.callbacks.register("source_checkpoints", func=SourceCheckpoints)
    registry.callbacks_with_config.register("start_from", func=StartFrom)
    registry.config_transforms.register("dept", func=config.complete)
    icl.register()
    finishing.register()
    for name, optimizer in TORCH_OPTIMIZERS.items():
        if name not in registry.optimizers:
            registry.optimizers.register(name, func=optimizer)
