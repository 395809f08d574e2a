"""Fused attention against one that is written out, token by token, in float64."""

import math

import pytest
import torch

from dept.method.fused_attention import fused_attention

BATCH, HEADS, LENGTH, WIDTH = 2, 4, 7, 3
SLOPES = [0.5, 0.25, 0.125, 0.0625]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def alibi(length):
    """As llm-foundry makes it: [1, heads, 1, keys], 0 at the last key."""
    return torch.tensor(SLOPES).view(1, -1, 1, 1) * torch.arange(1 - length, 1.0)


def written_out(q, k, v, kv_heads, *, slopes=None, seen=lambda b, i, j: j <= i):
    """Of each query, the mean of the values it sees, in float64."""
    queries, keys = q.shape[1], k.shape[1]
    out = torch.zeros_like(q, dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(HEADS):
            g = h // (HEADS // kv_heads)
            for i in range(queries):
                at, token = slice(h * WIDTH, (h + 1) * WIDTH), i + keys - queries
                visible = [j for j in range(keys) if seen(b, token, j)]
                scores = [
                    float(q[b, i, at].double() @ k[b, j, g * WIDTH : (g + 1) * WIDTH].double())
                    / math.sqrt(WIDTH)
                    - (slopes[h] * abs(token - j) if slopes else 0.0)
                    for j in visible
                ]
                weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
                for weight, j in zip(weights, visible, strict=True):
                    out[b, i, at] += weight * v[b, j, g * WIDTH : (g + 1) * WIDTH].double()
    return out


def inputs(kv_heads=HEADS, queries=LENGTH, keys=LENGTH):
    return (
        draw(BATCH, queries, HEADS * WIDTH, seed=1),
        draw(BATCH, keys, kv_heads * WIDTH, seed=2),
        draw(BATCH, keys, kv_heads * WIDTH, seed=3),
    )


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("with_alibi", [True, False])
def test_each_query_sees_earlier_tokens(kv_heads, with_alibi):
    q, k, v = inputs(kv_heads)
    bias = alibi(LENGTH + 3) if with_alibi else None  # llm-foundry's is of max_seq_len
    out, weights, cache = fused_attention(
        q, k, v, HEADS, kv_heads, attn_bias=bias, is_causal=True, training=True
    )
    close(out, written_out(q, k, v, kv_heads, slopes=SLOPES if with_alibi else None))
    assert weights is None and cache is None


@pytest.mark.parametrize("with_alibi", [True, False])
def test_padding_is_not_seen_on_either_side(with_alibi):
    q, k, v = inputs()
    present = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    bias = None
    if with_alibi:  # llm-foundry masks in the bias too, and keeps the padding mask
        least = torch.finfo(torch.float32).min
        bias = alibi(LENGTH).masked_fill(~present[:, None, None, :], least)
    out = fused_attention(
        q, k, v, HEADS, HEADS, attn_bias=bias, key_padding_mask=present, is_causal=True
    )[0]
    assert out.isfinite().all()  # also where a padded query sees nothing
    expected = written_out(
        q,
        k,
        v,
        HEADS,
        slopes=SLOPES if with_alibi else None,
        seen=lambda b, i, j: j <= i and bool(present[b, j]),
    )
    close(out[present], expected[present])


def test_a_bias_of_sequences_keeps_them_apart():
    q, k, v = inputs()
    sequence = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 2, 2]])
    positions = torch.arange(LENGTH)
    bias = torch.tensor(SLOPES).view(1, -1, 1, 1) * -(positions[:, None] - positions).abs()
    apart = sequence[:, :, None] != sequence[:, None, :]
    bias = bias.masked_fill(apart[:, None], torch.finfo(torch.float32).min)
    out = fused_attention(q, k, v, HEADS, HEADS, attn_bias=bias, is_causal=True)[0]
    same = lambda b, i, j: j <= i and bool(sequence[b, i] == sequence[b, j])  # noqa: E731
    close(out, written_out(q, k, v, HEADS, slopes=SLOPES, seen=same))


@pytest.mark.parametrize("step", [1, LENGTH])
def test_tokens_after_a_cache_continue_it(step):
    q, k, v = inputs()
    whole = written_out(q, k, v, HEADS, slopes=SLOPES)
    cache, outs = (), []
    for first in range(0, LENGTH, step):
        part = [x[:, first : first + step] for x in (q, k, v)]
        out, _, cache = fused_attention(
            *part, HEADS, HEADS, cache, attn_bias=alibi(LENGTH), is_causal=True
        )
        outs.append(out)
    close(torch.cat(outs, 1), whole)
    keys, values = cache  # in the layout of llm-foundry's `torch`
    assert keys.shape == (BATCH, HEADS, WIDTH, LENGTH) and values.shape[2:] == (LENGTH, WIDTH)


def test_bfloat16_is_near_although_the_bias_is_large():
    length = 600
    q, k, v = (draw(1, length, HEADS * WIDTH, seed=s) for s in (1, 2, 3))
    given = {"attn_bias": alibi(length), "is_causal": True}
    exact = fused_attention(q, k, v, HEADS, HEADS, **given)[0]
    low = fused_attention(*(x.bfloat16() for x in (q, k, v)), HEADS, HEADS, **given)[0]
    assert float((low - exact).norm() / exact.norm()) < 0.02


def test_what_the_kernels_lack_is_refused():
    q, k, v = inputs()
    for given in ({"needs_weights": True}, {"attn_logit_softcapping": 3.0}):
        with pytest.raises(NotImplementedError, match=r"attn_impl is fused.*set it to torch"):
            fused_attention(q, k, v, HEADS, HEADS, **given)
