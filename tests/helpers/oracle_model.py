"""The oracle's decoder and its inner optimizer, in plain torch over parameters by name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Parameters = dict[str, Tensor]  # by name, as in a checkpoint of Composer
Moments = dict[str, tuple[int, Tensor, Tensor]]  # steps taken, first moment, second moment

BASE = "model.transformer."
TOKENS = (f"{BASE}wte.weight", "model.lm_head.weight")  # phi
POSITIONS = f"{BASE}wpe.weight"  # psi
EMBEDDINGS = (*TOKENS, POSITIONS)


@dataclass(frozen=True)
class Recipe:
    """What a run trains with: the keys of its yaml."""

    seed: int
    heads: int
    batch: int  # sequences
    lr: float
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: float = 0.1  # of all steps
    floor: float = 0.1  # of the peak, where the cosine ends
    stage: str = "pretraining"


# --- the decoder ---------------------------------------------------------------------------------


def logits(parameters: Parameters, rows: Tensor, heads: int) -> Tensor:
    """MPT: pre-LayerNorm blocks without biases, ALiBi unless positions are learned.

    Args:
        parameters: of the model.
        rows: int64[batch, length], of the token matrix.
        heads: of attention.

    Returns:
        float[batch, length, |V|]: by the token matrix again, or by an untied head.
    """
    tokens = parameters[TOKENS[0]]
    batch, length = rows.shape
    width = tokens.shape[1]
    x = tokens[rows]
    position = torch.arange(length)
    ahead = position[None, :] > position[:, None]
    bias = torch.zeros(heads, length, length, dtype=tokens.dtype)
    if POSITIONS in parameters:
        x = x + parameters[POSITIONS][:length]
    else:
        if heads & (heads - 1):
            raise ValueError("ALiBi's slopes of a number of heads that is no power of two")
        slopes = 2.0 ** (-8.0 / heads * torch.arange(1, heads + 1, dtype=tokens.dtype))
        bias = -slopes[:, None, None] * (position[:, None] - position[None, :])
    bias = bias.masked_fill(ahead, -math.inf)

    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, (width,), parameters[f"{BASE}{name}.weight"], eps=1e-5)

    for block in range(sum(name.endswith(".norm_1.weight") for name in parameters)):
        at = f"blocks.{block}"
        qkv = F.linear(norm(f"{at}.norm_1", x), parameters[f"{BASE}{at}.attn.Wqkv.weight"])
        q, k, v = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias, dim=-1)
        attended = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + F.linear(attended, parameters[f"{BASE}{at}.attn.out_proj.weight"])
        inner = F.gelu(
            F.linear(norm(f"{at}.norm_2", x), parameters[f"{BASE}{at}.ffn.up_proj.weight"])
        )
        x = x + F.linear(inner, parameters[f"{BASE}{at}.ffn.down_proj.weight"])
    return F.linear(norm("norm_f", x), parameters.get(TOKENS[1], tokens))


def cross_entropies(scores: Tensor, targets: Tensor) -> Tensor:
    """Nats that each next token costs, float[batch, length - 1]; both of the whole sequences."""
    log_p = torch.log_softmax(scores[:, :-1], dim=-1)
    return -log_p.gather(-1, targets[:, 1:, None]).squeeze(-1)


# --- the inner optimizer -------------------------------------------------------------------------


def factor(step: int, steps: int, warmup: float, floor: float) -> float:
    """Of the peak rate in ``step`` (from 0) of ``steps``: linear from 0, then half a cosine.

    Composer asks its scheduler for the next rate before it has counted the step just taken, so
    that every step but the first has the rate of the one before. DEPT keeps that, to train as plain
    training does.
    """
    now, warm = max(step - 1, 0), int(warmup * steps)
    if now < warm:
        return now / warm
    done = (now - warm) / (steps - warm)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def take_step(
    parameters: Parameters,
    moments: Moments,
    rows: Tensor,
    rates: Mapping[str, float],
    recipe: Recipe,
) -> tuple[float, float]:
    """One step of decoupled AdamW with the gradient clipped by its norm over all parameters.

    Args:
        parameters: of the local model; those of the step after it are put in their place.
        moments: of the parameters that have any; changed too.
        rows: int64[batch, length].
        rates: learning rate of each parameter.
        recipe: of the run.

    Returns:
        The loss before the step, and the norm of the gradient.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    loss = cross_entropies(logits(leaves, rows, recipe.heads), rows).mean()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    scale = min(1.0, recipe.clip / (norm + 1e-6))  # torch's guard against a norm of 0
    first_decay, second_decay = recipe.betas
    for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
        zero = torch.zeros_like(value)
        steps, first, second = moments.get(name, (0, zero, zero))
        steps += 1
        first = first_decay * first + (1 - first_decay) * scale * gradient
        second = second_decay * second + (1 - second_decay) * (scale * gradient).square()
        moments[name] = (steps, first, second)
        mean = first / (1 - first_decay**steps)
        spread = (second / (1 - second_decay**steps)).sqrt()
        # Composer's decay follows the schedule, but is not scaled by the peak rate.
        decayed = value * (1 - recipe.weight_decay * rates[name] / recipe.lr)
        parameters[name] = decayed - rates[name] * mean / (spread + recipe.eps)
    return float(loss.detach()), norm
