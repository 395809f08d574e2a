"""One fine-tuning run: the model, Composer's trainer, and the results."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Evaluator, Trainer
from composer.algorithms import GradientClipping
from composer.optim import LinearWithWarmupScheduler
from composer.utils import dist
from torch import nn
from transformers import PreTrainedModel

from dept.checkpoint.saver import Checkpoints
from dept.checkpoint.sigterm import StopOnSigterm
from dept.errors import ConfigError
from dept.evaluation.finetuning.baselines import bag_of_words, majority, token_counts, word_counts
from dept.evaluation.finetuning.batches import loader, samples
from dept.evaluation.finetuning.best_epoch import BestEpoch, best
from dept.evaluation.finetuning.examples import Example
from dept.evaluation.finetuning.model import FineTuned, add_rows
from dept.evaluation.finetuning.options import FineTuneOptions
from dept.evaluation.finetuning.transfer import embeddings, readings
from dept.evaluation.models.source_models import SourceModel, context_length, load
from dept.training.jsonl_logger import JsonlLogger
from dept.transport import cpu

EVAL_BATCH = 64


def fine_tune(
    options: FineTuneOptions,
    splits: Mapping[str, Sequence[Example]],
    transfer: Mapping[str, Sequence[Example]],
    run_name: str,
    folder: Path,
) -> dict[str, Any]:
    """Train or resume one run.

    Args:
        options: the options of the yaml.
        splits: examples of ``train``, ``val`` and ``test``.
        transfer: further examples for tests, by the source whose embedding reads them.
        run_name: name of the run.
        folder: folder of its files.

    Returns:
        The contents of ``summary.json``.

    Raises:
        ConfigError: the checkpoint cannot be used, has no embedding of a source in ``transfer``, or
            sequences do not fit the model.
        DataError: the corpus of the checkpoint is missing.
    """
    cpu.prepare()
    source = load(options.checkpoint, options.source, options.root)
    kind, labels = options.task.kind, options.task.labels or []
    limit = sequence_limit(source.model, options.max_length)
    baselines = _baselines(splits, kind, len(labels), source)

    generator = torch.Generator().manual_seed(options.seed)
    pretrained = (
        source.model if options.init == "pretrained" else untrained(source.model, options.seed)
    )
    special = add_rows(pretrained, generator)
    others = readings(transfer, source, special, options.checkpoint, options.root)
    if options.frozen_embedding:
        fixed = embeddings(pretrained)
        for name, parameter in pretrained.named_parameters():
            parameter.requires_grad_(name not in fixed)
    numbers = [example.label for example in splits["train"]]
    model = FineTuned(
        pretrained,
        kind,
        len(labels),
        lm_coef=options.lm_coef,
        dropout=options.dropout,
        embedding_dropout=options.embedding_dropout,
        token_dropout=options.token_dropout,
        mean=sum(numbers) / len(numbers),
        generator=generator,
        others={name: o.embedding for name, o in others.items() if o.embedding is not None},
    )
    of = {name: samples(s, kind, source.tokenizer, special, limit) for name, s in splits.items()}
    for name, o in others.items():
        of[name] = samples(transfer[name], kind, o.tokenizer, o.special, limit)
    metric = next(iter(model.get_metrics()))
    best_epoch, checkpoints = BestEpoch(metric), str(folder / "checkpoints")
    batch_size = of_this_process(options.global_train_batch_size)
    optimizer = torch.optim.AdamW(
        decayed(model, options.optimizer.weight_decay),
        lr=options.optimizer.lr,
        betas=tuple(options.optimizer.betas),
        eps=options.optimizer.eps,
    )
    trainer = Trainer(
        model=model,
        train_dataloader=loader(of["train"], batch_size, shuffle=True, seed=options.seed),
        eval_dataloader=[
            Evaluator(
                label=name,
                dataloader=loader(
                    of[name],
                    EVAL_BATCH,
                    shuffle=False,
                    seed=0,
                    source=name if name in others else None,
                ),
                metric_names=list(model.get_metrics()),
            )
            for name in ("val", "test", *others)
        ],
        eval_interval="1ep",
        max_duration=options.max_duration,
        optimizers=optimizer,
        schedulers=LinearWithWarmupScheduler(t_warmup=options.t_warmup, alpha_f=0.0),
        algorithms=[
            GradientClipping(clipping_type="norm", clipping_threshold=options.clipping_threshold)
        ],
        callbacks=[
            best_epoch,
            StopOnSigterm(),
            Checkpoints(
                checkpoints, save_interval=options.save_interval, num_checkpoints_to_keep=1
            ),
        ],
        loggers=[JsonlLogger(str(folder / "metrics.jsonl"))],
        device_train_microbatch_size=options.device_train_microbatch_size or batch_size,
        precision=options.precision,
        seed=options.seed,
        run_name=run_name,
        save_folder=checkpoints,
        autoresume=True,
        progress_bar=sys.stderr.isatty(),
        load_progress_bar=False,
    )
    began = time.monotonic()
    if trainer.state.timestamp < trainer.state.max_duration:  # otherwise killed just before the end
        trainer.fit()
    trainer.close()
    chosen = best(best_epoch.history, metric)
    return {
        "task": options.task.name,
        "kind": kind,
        "metric": metric,
        "checkpoint": options.checkpoint,
        "source": source.name,
        "init": options.init,
        "seed": options.seed,
        "learning_rate": options.optimizer.lr,
        "parameters": sum(p.numel() for p in model.parameters()),
        "examples": {name: len(examples) for name, examples in splits.items()},
        "cut": sum(len(s) == limit for sample in of["train"] for s in sample.sequences),
        "baselines": baselines,
        "best": chosen,
        "test": chosen["test"],
        "transfer": {name: chosen[name] for name in others},
        "history": best_epoch.history,
        "timing": {"train_seconds": time.monotonic() - began},
    }


def sequence_limit(model: PreTrainedModel, asked: int | None) -> int:
    """Tokens of a sequence: the requested number, or the model's context.

    Args:
        model: model to train.
        asked: requested number of tokens, or ``None``.

    Raises:
        ConfigError: the request exceeds the context, or the context is unknown.
    """
    most = context_length(model)
    if asked is None and most is None:
        raise ConfigError("max_length is not set, and the model names no longest sequence: set it")
    if asked is not None and most is not None and asked > most:
        raise ConfigError(f"max_length is {asked}, and the model reads {most} tokens: lower it")
    return asked or most


def untrained(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The same architecture with newly initialised parameters.

    Args:
        model: model whose class and config are used.
        seed: seed of torch's global random generator.
    """
    torch.manual_seed(seed)
    return type(model)(model.config)


def decayed(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of parameters for AdamW: gains and biases are not decayed.

    Args:
        model: model whose trained parameters are grouped.
        weight_decay: weight decay of the parameters with two or more dimensions.

    Returns:
        Two groups: the parameters that are decayed, then the others.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def of_this_process(batch_size: int) -> int:
    """The share of each process in a batch.

    Raises:
        ConfigError: the batch cannot be divided into equal parts.
    """
    if batch_size % dist.get_world_size():
        raise ConfigError(
            f"global_train_batch_size is {batch_size}, for {dist.get_world_size()} processes: set "
            f"it to a multiple"
        )
    return batch_size // dist.get_world_size()


def _baselines(
    splits: Mapping[str, Sequence[Example]], kind: str, classes: int, source: SourceModel
) -> dict[str, float]:
    """On ``test``, in the metric that epochs are compared by."""
    rows = source.model.get_input_embeddings().weight.shape[0]
    found = {"majority": majority(splits)} if classes else {}
    tokens, words = token_counts(source.tokenizer, rows), word_counts(splits["train"])
    found["bag_of_tokens"] = bag_of_words(splits, kind, classes, tokens)
    found["bag_of_words"] = bag_of_words(splits, kind, classes, words)
    return found
