"""Bits per byte of raw text under a model, which can be compared between tokenizers.

Text is read as in training: an end-of-text token before each document, tokens in a row, cut into
windows of the model's context. A window begins with the last token of the one before, so each token
is predicted once, from at least one other. Training's own evaluation cuts windows apart and lets
their first token cost the mean of the others (``training/source_metrics.py``): the expected value
is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dept.errors import ConfigError
from dept.evaluation.models.source_models import SourceModel, context_length
from dept.evaluation.scoring.spelling import Speller

UNKNOWN_BYTE = 8 * math.log(2)
"""Nats for a byte that the vocabulary cannot spell, on top of its unknown token: one in 256."""

_IGNORED = -100
CONTEXT = 2048  # of models without a limit
_LOGITS = 1 << 23  # numbers held at a time; four times as many take 1.6 times as long


@dataclass(frozen=True)
class Score:
    """The cost of a text under one model.

    Attributes:
        bytes: bytes of the text as UTF-8.
        unknown_bytes: bytes among them of characters that no token spells.
    """

    nats: float
    """Nats of all tokens, including unknown bytes."""

    tokens: int
    """Predicted, the end-of-text tokens among them."""

    bytes: int
    unknown_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits for a UTF-8 byte of the text."""
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True)
class Stream:
    """Token ids in a row; those whose place in ``predicted`` is false are only read.

    Attributes:
        ids: token ids, one after another.
        predicted: for each id, whether its cost counts.
    """

    ids: list[int]
    predicted: list[bool]


def separator(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token between documents.

    Raises:
        ConfigError: the tokenizer has neither an end-of-text token nor a first one.
    """
    for token_id in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token_id is not None:
            return token_id
    raise ConfigError(
        f"{tokenizer.name_or_path or type(tokenizer).__name__} has neither eos_token nor "
        f"bos_token, and a text must begin with one: set it in its tokenizer_config.json"
    )


def first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that a document begins behind: what the tokenizer itself puts there, or the end of
    the document before."""
    return next(iter(tokenizer("").input_ids), separator(tokenizer))


class Scorer:
    """Scores text under one model.

    Args:
        source: the model with its tokenizer.
        context: tokens of a window, if fewer than the model's own.

    Raises:
        ConfigError: the tokenizer is slow or has no token to begin with.
    """

    def __init__(self, source: SourceModel, context: int | None = None) -> None:
        self.source = source
        own = context_length(source.model) or CONTEXT
        self.context = min(own, context or own)
        if self.context < 2:
            raise ConfigError(f"a context of {self.context} predicts nothing: take 2 or more")
        self._speller = Speller(source.tokenizer, source.untrained_ids)
        self._end = separator(source.tokenizer)
        self._first = first_token(source.tokenizer)

    def texts(self, texts: Sequence[str]) -> list[Score]:
        """Each text by itself, as the beginning of a document."""
        spelled = self._speller.spell(texts)
        streams = [Stream([self._first, *s.ids], [False] + [True] * len(s.ids)) for s in spelled]
        nats = stream_nats(self.source, streams, self.context)
        return [
            Score(n + s.unknown_bytes * UNKNOWN_BYTE, len(s.ids), s.bytes, s.unknown_bytes)
            for n, s in zip(nats, spelled, strict=True)
        ]

    def documents(self, texts: Sequence[str], whole: Sequence[bool] | None = None) -> Score:
        """Documents one after another in one stream, as in shards.

        Args:
            texts: of the documents.
            whole: which of them end where the text ends, and are charged for saying so; all by
                default.
        """
        ids, predicted = [self._first], [False]
        spelled = self._speller.spell(texts)
        for s, ends in zip(spelled, whole or [True] * len(texts), strict=True):
            ids += [*s.ids, self._end]
            predicted += [True] * len(s.ids) + [ends]
            if self._first != self._end:
                ids.append(self._first)
                predicted.append(False)
        (nats,) = stream_nats(self.source, [Stream(ids, predicted)], self.context)
        unknown = sum(s.unknown_bytes for s in spelled)
        size = sum(s.bytes for s in spelled)
        return Score(nats + unknown * UNKNOWN_BYTE, sum(predicted), size, unknown)


@torch.inference_mode()
def stream_nats(source: SourceModel, streams: Sequence[Stream], context: int) -> list[float]:
    """Nats of the predicted tokens of each stream.

    Untrained ids are removed from the softmax. If the text has one, the cost of the unknown token
    is used instead.

    Args:
        source: the model; ids are its own.
        streams: of any lengths.
        context: tokens of a window; as in training, its last one is only predicted.
    """
    windows = [
        (number, begin)
        for number, stream in enumerate(streams)
        for begin in range(0, len(stream.ids) - 1, context - 1)
    ]
    windows.sort(key=lambda w: -min(len(streams[w[0]].ids) - w[1], context))  # alike in length
    nats, place = [0.0] * len(streams), 0
    while place < len(windows):
        number, begin = windows[place]
        width = min(len(streams[number].ids) - begin, context) - 1
        rows = max(1, _LOGITS // (width * source.model.config.vocab_size))
        batch = windows[place : place + rows]
        place += rows
        for (number, _), loss in zip(batch, _losses(source, streams, batch, width), strict=True):
            nats[number] += loss
    return nats


def _losses(
    source: SourceModel, streams: Sequence[Stream], batch: list[tuple[int, int]], width: int
) -> list[float]:
    """Nats of each window; padding is on the right, where no earlier token reads it."""
    device = source.model.device
    inputs = torch.zeros(len(batch), width, dtype=torch.int64)
    targets = torch.full_like(inputs, _IGNORED)
    for row, (number, begin) in enumerate(batch):
        ids = torch.tensor(streams[number].ids[begin : begin + width + 1])
        predicted = torch.tensor(streams[number].predicted[begin : begin + width + 1])
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = torch.where(predicted[1:], ids[1:], _IGNORED)
    inputs, targets = inputs.to(device), targets.to(device)
    logits: Tensor = source.model(input_ids=inputs, **_PLAIN).logits.float()
    if source.untrained_ids:
        untrained = torch.tensor(source.untrained_ids, device=device)
        logits[..., untrained] = -math.inf
        targets[torch.isin(targets, untrained)] = unknown_id(source.tokenizer)
    flat = logits.reshape(-1, logits.shape[-1])
    loss = torch.nn.functional.cross_entropy(
        flat, targets.reshape(-1), ignore_index=_IGNORED, reduction="none"
    )
    return loss.view_as(targets).double().sum(dim=1).tolist()


_PLAIN: dict[str, Any] = {"use_cache": False, "return_dict": True}


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token whose row replaces tokens without a row."""
    unknown = tokenizer.unk_token_id
    return separator(tokenizer) if unknown is None else unknown
