"""The number of parameters of an MPT of llm-foundry, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dept.errors import ConfigError

# Numbers of a norm for each feature: a weight, and a bias unless `no_bias` removes it.
NORMS = {
    "layernorm": 2,
    "low_precision_layernorm": 2,
    "rmsnorm": 1,
    "low_precision_rmsnorm": 1,
    "triton_rmsnorm": 1,
}


@dataclass(frozen=True)
class Parameters:
    """The size of a model for any vocabulary, in numbers of parameters.

    Attributes:
        body: theta.
        per_token: parameters of phi per token: d, or 2 d if the head is not tied.
        positions: psi, learned positions; 0 with ALiBi and RoPE.
    """

    body: int
    per_token: int
    positions: int = 0

    def embedding(self, rows: float) -> float:
        """Parameters of phi and psi for a vocabulary of ``rows`` tokens (may be a mean)."""
        return rows * self.per_token + self.positions

    def total(self, rows: float) -> float:
        """Parameters of the whole model for a vocabulary of ``rows`` tokens."""
        return self.body + self.embedding(rows)


def mpt_parameters(model: Mapping[str, Any]) -> Parameters:
    """Count the parameters of llm-foundry's ``mpt_causal_lm`` with its defaults; imports nothing.

    A block of an MPT without biases has 4 d^2 numbers of attention, 8 d^2 of feed-forward network
    and 2 d of norms.

    Args:
        model: the section ``model`` of a yaml.

    Raises:
        ConfigError: the model is not an MPT, or has parts that the formula does not cover.
    """
    if model.get("name") != "mpt_causal_lm":
        raise _unknown("name", model.get("name"))
    if model.get("block_overrides"):
        raise _unknown("block_overrides", model["block_overrides"])
    fc_type = model.get("fc_type", "torch")
    fc_type = fc_type if isinstance(fc_type, str) else fc_type.get("name", "torch")
    if fc_type != "torch":
        raise _unknown("fc_type", fc_type)
    width, layers = model.get("d_model", 2048), model.get("n_layers", 24)
    bias = not model.get("no_bias", False)
    attention, ffn = model.get("attn_config") or {}, model.get("ffn_config") or {}
    norm = width * _norm("norm_type", model.get("norm_type"), bias)
    block = 2 * norm + _attention(model, attention, bias) + _ffn(model, ffn, bias)
    learned = model.get("learned_pos_emb", True)
    learned = learned and not (attention.get("alibi") or attention.get("rope"))
    return Parameters(
        body=layers * block + norm,
        per_token=width * (1 if model.get("tie_word_embeddings", True) else 2),
        positions=width * int(model.get("max_seq_len", 2048)) if learned else 0,
    )


def _attention(model: Mapping[str, Any], options: Mapping[str, Any], bias: bool) -> int:
    width, heads = model.get("d_model", 2048), model.get("n_heads", 16)
    each = model.get("head_dim") or width // heads
    kind = options.get("attn_type", "multihead_attention")
    known = {"multihead_attention": heads, "multiquery_attention": 1}
    known["grouped_query_attention"] = options.get("kv_n_heads", 0)
    if not known.get(kind):
        raise _unknown("attn_config.attn_type", kind)
    queries, keys = heads * each, known[kind] * each
    of_inputs = model.get("attention_bias")  # overrides `no_bias`
    of_inputs = bias if of_inputs is None else of_inputs
    numbers = width * queries + 2 * keys * (options.get("kv_dim") or width)
    numbers += (queries + 2 * keys) * of_inputs
    numbers += queries * width + width * bias  # the projection back
    norm = _norm("attn_config.norm_type", options.get("norm_type"), bias)
    if options.get("qk_ln"):
        numbers += norm * (queries + keys)
    if options.get("qk_gn"):
        numbers += norm * 2 * each
    return numbers


def _ffn(model: Mapping[str, Any], options: Mapping[str, Any], bias: bool) -> int:
    width, kind = model.get("d_model", 2048), options.get("ffn_type", "mptmlp")
    if kind not in ("mptmlp", "mptglu"):
        raise _unknown("ffn_config.ffn_type", kind)
    hidden = options.get("ffn_hidden_size") or int(width * model.get("expansion_ratio", 4))
    ups = 2 if kind == "mptglu" else 1
    return (ups + 1) * width * hidden + (ups * hidden + width) * bias


def _norm(option: str, kind: str | None, bias: bool) -> int:
    numbers = NORMS.get((kind or "low_precision_layernorm").lower())
    if numbers is None:
        raise _unknown(option, kind)
    return numbers if bias else 1


def _unknown(option: str, value: Any) -> ConfigError:
    return ConfigError(
        f"the formula does not cover model.{option} = {value!r}, only an MPT's usual parts: give "
        f"--build to count on the meta device (half a minute of imports)"
    )
