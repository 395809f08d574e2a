"""Batches of token ids from examples, in an order given by a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from composer import DataSpec
from composer.utils import dist
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from dept.evaluation.finetuning.examples import Example
from dept.evaluation.finetuning.layouts import LAYOUTS, Special


@dataclass(frozen=True)
class Sample:
    """An example in tokens.

    Attributes:
        sequences: token ids of each sequence; a choice has one for each answer, and similarity has
            two.
        label: label of the example.
    """

    sequences: list[list[int]]
    pieces: Mapping[str, Any]
    """Ids of its pieces, whole."""

    label: float | int


def samples(
    examples: Sequence[Example],
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    special: Special,
    limit: int,
) -> list[Sample]:
    """Tokenize examples in the layout of their kind of task.

    Args:
        examples: examples of one split.
        kind: kind of the task, a key of ``layouts.LAYOUTS``.
        tokenizer: tokenizer of the model; its own special tokens are not added.
        special: special tokens of the layout.
        limit: the most tokens of a sequence.

    Raises:
        ConfigError: the layout does not fit in ``limit`` tokens.
    """

    def ids(text: str | list[str]) -> Any:
        return tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    found = []
    for example in examples:
        pieces = {name: ids(text) for name, text in example.pieces.items()}
        found.append(Sample(LAYOUTS[kind].sequences(pieces, special, limit), pieces, example.label))
    return found


def batch(of: Sequence[Sample], source: str | None = None) -> dict[str, Any]:
    """Samples as tensors, padded on the right to the longest sequence.

    Args:
        of: the samples.
        source: the source whose embedding they are read with; by default the fine-tuned one.

    Returns:
        ``input_ids`` and ``attention_mask`` int64[B, S, T], and ``labels`` [B], int64 of classes or
        float32 of estimates; ``source`` if it is given.
    """
    rows = [torch.tensor(sequence) for sample in of for sequence in sample.sequences]
    ids = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    shape = (len(of), -1, ids.shape[1])
    labels = torch.tensor([sample.label for sample in of])
    made = {"input_ids": ids.view(shape), "attention_mask": mask.view(shape), "labels": labels}
    return made if source is None else {**made, "source": source}


def loader(
    of: Sequence[Sample], batch_size: int, *, shuffle: bool, seed: int, source: str | None = None
) -> DataSpec:
    """Batches of one process, as Composer takes them.

    Args:
        of: every sample of the split.
        batch_size: batch size of this process.
        shuffle: whether each epoch has a new order, given by the seed.
        seed: any whole number.
        source: as of :func:`batch`.
    """
    sampler = dist.get_sampler(of, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
    return DataSpec(
        DataLoader(
            of,  # type: ignore[arg-type]
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=partial(batch, source=source),
        ),
        get_num_samples_in_batch=lambda of: len(of["labels"]),
        get_num_tokens_in_batch=lambda of: int(of["attention_mask"].sum()),
    )
