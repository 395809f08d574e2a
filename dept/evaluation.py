"""Scoring text in a source's vocabulary: what counts when a token has no row of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def restrict_to_vocabulary(logits: Tensor, targets: Tensor, holds: Tensor) -> Tensor:
    """Score tokens of ``V_k`` by a softmax over ``V_k``, others by one over all of ``V``.

    For a trimmed model with a global matrix (TRIM): its loss never compared a token of the source
    with one outside, so neither does its evaluation; the full matrix scores the rest.

    Args:
        logits: float[batch, length, V], of the full matrix; changed in place.
        targets: int64[batch, length], ids predicted at each position, negative where none is.
        holds: bool[V], the tokens of the source.

    Returns:
        The logits.
    """
    inside = torch.zeros_like(targets, dtype=torch.bool)
    predicted = targets >= 0
    inside[predicted] = holds.to(targets.device)[targets[predicted]]
    outside_tokens = ~holds.to(logits.device)
    return logits.masked_fill_(inside.unsqueeze(-1) & outside_tokens, -math.inf)


@torch.no_grad()
def score_unseen_uniformly(
    logits: Tensor, targets: Tensor, unseen: Tensor, vocab_size: int
) -> Tensor:
    """Make a token that has no row cost ``ln V`` nats: one in ``V``, as if nothing were known.

    For a model with private embeddings only (SPEC), which cannot tell such tokens apart. Leaving
    them out would make a small vocabulary look better than it is.

    Args:
        logits: float[batch, length, rows]; changed in place.
        targets: int64[batch, length], the row predicted at each position.
        unseen: bool[batch, length], the positions whose true token has no row.
        vocab_size: ``V``, of the tokenizer.

    Returns:
        The logits.
    """
    if bool(unseen.any()):
        others = max(logits.shape[-1] - 1, 1)
        # softmax then gives the target 1 / V, and the other rows share the rest
        logits[unseen] = math.log((vocab_size - 1) / others)
        logits[unseen, targets[unseen]] = 0.0
    return logits
