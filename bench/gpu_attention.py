"""One attention layer of the 125M body, forward and backward: ms, memory and error of each kernel.

    python bench/gpu_attention.py RECORD.json [--length 2048]

`torch` is llm-foundry's, `fused` ours, `flex` torch's flex attention, compiled, as a trial, and
`flash` is timed where flash-attn is installed. The error is that of the output and the gradients,
relative to `torch` in float32. On a CPU nothing is timed.
"""

import argparse
import json
from pathlib import Path

import torch

BATCH, HEADS, WIDTH = 8, 12, 64


def main(arguments: list[str] | None = None) -> int:
    """Write the record; a kernel that fails is recorded with its error."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("record", type=Path)
    options.add_argument("--length", type=int, default=2048)
    options.add_argument("--batch", type=int, default=BATCH)
    chosen = options.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    shape = (chosen.batch, chosen.length, HEADS * WIDTH)
    exact = [torch.randn(shape, device=device) for _ in range(4)]
    rows = []
    for alibi in (True, False):
        kernels = kernels_of(chosen.length, alibi, device)
        reference = step(kernels["torch"], leaves(exact[:3], torch.float32), exact[3])
        for name, kernel in kernels.items():
            row = {"kernel": name, "alibi": alibi, "length": chosen.length, "batch": chosen.batch}
            try:
                row |= measure(kernel, exact, reference, device)
            except Exception as error:  # a kernel that this machine lacks
                row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
            rows.append(row)
            print(row, flush=True)
            chosen.record.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def kernels_of(length: int, alibi: bool, device: str) -> dict:
    """Functions of query, key and value, each [batch, length, heads x width], by name."""
    from llmfoundry.models.layers.attention import (
        build_alibi_bias,
        gen_slopes,
        scaled_multihead_dot_product_attention,
    )

    from dept.method.fused_attention import fused_attention

    bias = build_alibi_bias(HEADS, length, device=device, dtype=torch.float32) if alibi else None
    slopes = gen_slopes(HEADS, device=device, return_1d=True)
    common = {"n_heads": HEADS, "kv_n_heads": HEADS, "is_causal": True, "training": True}

    def of_foundry(function):
        return lambda q, k, v: function(q, k, v, attn_bias=bias, **common)[0]

    def flash(q, k, v):
        from flash_attn import flash_attn_func

        q, k, v = (x.unflatten(2, (HEADS, WIDTH)) for x in (q, k, v))
        out = flash_attn_func(q, k, v, causal=True, alibi_slopes=slopes if alibi else None)
        return out.flatten(2)

    return {
        "torch": of_foundry(scaled_multihead_dot_product_attention),
        "fused": of_foundry(fused_attention),
        **({"flex": flex(length, slopes if alibi else None, device)} if device == "cuda" else {}),
        **({"flash": flash} if device == "cuda" else {}),
    }


def flex(length: int, slopes: torch.Tensor | None, device: str):
    """torch's flex attention, which needs a compiler for a GPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def biased(score, b, h, q, k):
        return score + slopes[h] * (k - q)

    def function(q, k, v):
        q, k, v = (x.unflatten(2, (HEADS, WIDTH)).transpose(1, 2) for x in (q, k, v))
        score_mod = None if slopes is None else biased
        return compiled(q, k, v, score_mod=score_mod, block_mask=mask).transpose(1, 2).flatten(2)

    return function


def leaves(tensors: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Copies that gradients are computed for."""
    return [x.to(dtype, copy=True).requires_grad_() for x in tensors]


def step(kernel, inputs: list[torch.Tensor], gradient: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradients of the inputs."""
    out = kernel(*inputs)
    gradients = torch.autograd.grad(out, inputs, gradient.to(out.dtype))
    return [out.detach(), *gradients]


def measure(kernel, exact: list[torch.Tensor], reference: list[torch.Tensor], device: str) -> dict:
    """Error, and on a GPU the median time of a step and the peak memory."""
    inputs, gradient = leaves(exact[:3], torch.bfloat16), exact[3].bfloat16()
    found = step(kernel, inputs, gradient)
    pairs = zip(found, reference, strict=True)
    row = {"relative_error": max(float((a.float() - b).norm() / b.norm()) for a, b in pairs)}
    if device == "cpu":
        return row
    for _ in range(3):
        step(kernel, inputs, gradient)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(20):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        step(kernel, inputs, gradient)
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended))
    row["ms"] = sorted(times)[len(times) // 2]
    return row | {"peak_memory_bytes": torch.cuda.max_memory_allocated()}


if __name__ == "__main__":
    main()
