"""Attention of llm-foundry's MPT in torch's fused kernels, with ALiBi.

llm-foundry's ``torch`` writes every score to memory, in float32 with ALiBi, and its ``flash`` needs
flash-attn, which has no wheels. This computes the same with ``scaled_dot_product_attention``.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Cache = tuple[Tensor, Tensor] | tuple[()]


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    n_heads: int,
    kv_n_heads: int,
    past_key_value: Cache | None = None,
    softmax_scale: float | None = None,
    attn_bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    training: bool = False,
    needs_weights: bool = False,
    attn_logit_softcapping: float | None = None,
    sliding_window_size: int = -1,
) -> tuple[Tensor, None, tuple[Tensor, Tensor] | None]:
    """Attention with the arguments and the result of llm-foundry's ``torch``.

    Args:
        query: float[batch, queries, n_heads x width].
        key: float[batch, keys, kv_n_heads x width], without those of ``past_key_value``.
        value: like ``key``.
        n_heads: number of heads.
        kv_n_heads: number of heads of keys and values, a divisor of ``n_heads``.
        past_key_value: earlier keys [batch, heads, width, length] and values [batch, heads, length,
            width]; ``()`` begins a cache.
        softmax_scale: factor of the scores; ``width ** -0.5`` by default.
        attn_bias: float, added to the scores; broadcast to [batch, n_heads, queries, keys]. Larger
            ones are cut to their end, as llm-foundry does.
        key_padding_mask: bool[batch, keys]; false where there is no token.
        is_causal: whether a query sees no later keys.
        dropout_p: dropout of the weights in training.
        training: whether the model is trained.
        needs_weights: refused, since no weights are computed.
        attn_logit_softcapping: refused, since the kernels have none.
        sliding_window_size: refused unless -1.

    Returns:
        float[batch, queries, n_heads x width], ``None`` for the weights, and the cache.

    Raises:
        NotImplementedError: an argument is refused.
    """
    if needs_weights or attn_logit_softcapping is not None or sliding_window_size != -1:
        raise NotImplementedError(
            "model.attn_config.attn_impl is fused, which has neither weights as output nor "
            "attn_logit_softcapping nor sliding_window_size: set it to torch"
        )
    q = query.unflatten(2, (n_heads, -1)).transpose(1, 2)
    k = key.unflatten(2, (kv_n_heads, -1)).transpose(1, 2)
    v = value.unflatten(2, (kv_n_heads, -1)).transpose(1, 2)
    cache = None
    if past_key_value is not None:
        if past_key_value:
            k = torch.cat([past_key_value[0].transpose(2, 3), k], dim=2)
            v = torch.cat([past_key_value[1], v], dim=2)
        cache = (k.transpose(2, 3), v)
    if kv_n_heads < n_heads:
        k, v = (x.repeat_interleave(n_heads // kv_n_heads, dim=1) for x in (k, v))
    queries, keys = q.shape[2], k.shape[2]
    causal = is_causal and queries > 1
    mask = None
    if attn_bias is not None:
        mask = _cut(attn_bias, queries, keys)
        if mask.shape[0] == 1 and mask.shape[2] == 1 and causal and key_padding_mask is None:
            mask = _causal_alibi(attn_bias, queries, keys, q.dtype)  # one for all layers
        else:
            mask = _low(mask, causal, queries, keys, key_padding_mask, q.dtype)
    elif key_padding_mask is not None or (causal and queries != keys):
        nothing = torch.zeros(1, 1, queries, keys, device=q.device)
        mask = _low(nothing, causal, queries, keys, key_padding_mask, q.dtype)
    options: dict[str, Any] = {"dropout_p": dropout_p if training else 0.0, "scale": softmax_scale}
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, **options
    )
    return out.transpose(1, 2).flatten(2), None, cache


@functools.lru_cache(maxsize=2)
def _causal_alibi(bias: Tensor, queries: int, keys: int, dtype: torch.dtype) -> Tensor:
    """[1, heads, queries, keys] of an ALiBi bias; llm-foundry gives every layer the same object."""
    return _low(_cut(bias, queries, keys), True, queries, keys, None, dtype)


def _cut(bias: Tensor, queries: int, keys: int) -> Tensor:
    """The end of a bias that is made for a longer sequence."""
    return bias[:, :, -queries:, -keys:]


def _low(
    bias: Tensor,
    causal: bool,
    queries: int,
    keys: int,
    key_padding_mask: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The bias in a low precision, with the least number where a query does not see a key.

    A softmax ignores what is added to a whole row. So the bias of a row is counted from its own
    token: it is 0 there, and exact in bfloat16 where scores matter.

    Args:
        bias: float32[batch or 1, heads or 1, queries or 1, keys].
        causal: whether a query sees no later keys.
        queries: number of queries, the last of the keys.
        keys: number of keys.
        key_padding_mask: bool[batch, keys]; false where there is no token.
        dtype: precision of the result.

    Returns:
        dtype[batch or 1, heads or 1, queries or 1, keys].
    """
    least = torch.finfo(dtype).min
    masked = torch.finfo(bias.dtype).min / 2  # llm-foundry masks padding and sequences with min
    hidden = bias <= masked
    if key_padding_mask is not None:
        hidden = hidden | ~key_padding_mask[:, None, None, :]
    if bias.shape[2] == 1 and queries > 1:
        own = bias[:, :, 0, keys - queries :].unsqueeze(3)
        bias = bias - own.masked_fill(own <= masked, 0.0)
    if causal:
        ones = torch.ones(queries, keys, dtype=torch.bool, device=bias.device)
        hidden = hidden | ones.triu(keys - queries + 1)
    return bias.masked_fill(hidden, least).clamp(min=least).to(dtype)
