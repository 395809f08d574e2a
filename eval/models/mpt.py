"""Equivalents of an MPT in transformers, and the conversion of its parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPTNeoXConfig, MptConfig, PretrainedConfig

from dept.method.variants import Role

ROLES = {"transformer.wte.weight": Role.TOKENS, "lm_head.weight": Role.TOKENS}
"""The parameters of an MPT that have a row for each token; it may lack the second."""

# What none of them does; by key of llm-foundry's config. What only training sees (dropout,
# initialisation), or how attention is computed, is not in the list.
_NONE_DOES = {
    "attn_config.attn_logit_softcapping": None,
    "attn_config.attn_temperature_tuning.attn_scale": 0.0,
    "attn_config.attn_type": "multihead_attention",
    "attn_config.attn_uses_sequence_id": False,
    "attn_config.fused_qkv": True,
    "attn_config.kv_dim": None,
    "attn_config.nope": False,
    "attn_config.qk_gn": False,
    "attn_config.qk_ln": False,
    "attn_config.sliding_window_size": -1,
    "block_overrides": None,
    "embedding_fraction": 1.0,
    "fc_type.name": "torch",
    "ffn_config.ffn_act_fn": None,
    "ffn_config.ffn_type": "mptmlp",
    "final_logit_softcapping": None,
    "head_dim": None,
    "logit_scale": None,
}
# What llm-foundry takes where an older config lacks a key; of all others, what is wanted here.
_LLM_FOUNDRYS = {
    "attn_config.alibi": False,
    "attn_config.rope": False,
    "attn_config.rope_impl": "dail",
    "learned_pos_emb": True,
    "no_bias": False,
}
_NORMS = ("layernorm", "low_precision_layernorm")


@dataclass(frozen=True)
class StandIn:
    """A model of transformers that computes what some MPTs do."""

    fixed: Mapping[str, Any]
    """Required values of an MPT, besides ``_NONE_DOES``; by key of llm-foundry's config."""

    config: Callable[[Mapping[str, Any]], PretrainedConfig]
    """Its config, of an MPT's without the number of rows."""

    names: Mapping[str, str]
    """Its names for parts of an MPT's names of parameters."""

    value: Callable[[str, Tensor, int], Tensor] = lambda name, value, heads: value
    """Its value for a parameter of an MPT, whose name and heads are given."""

    def values(
        self, parameters: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], heads: int
    ) -> dict[str, Tensor]:
        """Its parameters by name: those of the MPT, and zeros for biases that it has none of.

        Args:
            parameters: of the MPT.
            shapes: of its own parameters.
            heads: of attention.
        """
        made = {}
        for name, value in parameters.items():
            new = name
            for part, other in self.names.items():
                new = re.sub(rf"\b{part}\b", other, new)
            made[new] = self.value(name, value, heads)
        without = (n for n in shapes if n.endswith(".bias") and n not in made)
        return made | {name: torch.zeros(shapes[name]) for name in without}


def _mpt(config: Mapping[str, Any]) -> PretrainedConfig:
    same = ("d_model", "n_heads", "n_layers", "expansion_ratio", "max_seq_len")
    attention = {key: config["attn_config"].get(key) for key in ("clip_qkv", "softmax_scale")}
    return MptConfig(
        **{key: config[key] for key in same},
        layer_norm_epsilon=config["norm_eps"],
        learned_pos_emb=False,
        attn_config={"alibi": True, **attention},
    )


def _gpt2(config: Mapping[str, Any]) -> PretrainedConfig:
    return GPT2Config(
        n_embd=config["d_model"],
        n_head=config["n_heads"],
        n_layer=config["n_layers"],
        n_inner=_inner(config),
        n_positions=config["max_seq_len"],
        activation_function="gelu",
        layer_norm_epsilon=config["norm_eps"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _gpt_neox(config: Mapping[str, Any]) -> PretrainedConfig:
    return GPTNeoXConfig(
        hidden_size=config["d_model"],
        num_attention_heads=config["n_heads"],
        num_hidden_layers=config["n_layers"],
        intermediate_size=_inner(config),
        max_position_embeddings=config["max_seq_len"],
        hidden_act="gelu",
        layer_norm_eps=config["norm_eps"],
        rotary_pct=1.0,
        rotary_emb_base=config["attn_config"]["rope_theta"],
        use_parallel_residual=False,
    )


def _inner(config: Mapping[str, Any]) -> int:
    hidden = config["ffn_config"].get("ffn_hidden_size")
    return hidden or int(config["d_model"] * config["expansion_ratio"])


def _transposed(name: str, value: Tensor, heads: int) -> Tensor:
    """GPT-2 keeps the matrices of its linear layers transposed."""
    is_linear = ".blocks." in name and value.dim() == 2
    return value.T.contiguous() if is_linear else value


def _by_head(name: str, value: Tensor, heads: int) -> Tensor:
    """GPT-NeoX groups queries, keys and values by head, MPT does not."""
    if ".Wqkv." not in name:
        return value
    return value.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2).contiguous()


_PLAIN_ATTENTION = {"attn_config.clip_qkv": None, "attn_config.softmax_scale": None}
_STAND_INS = (
    StandIn(
        fixed={
            "attention_bias": False,
            "attn_config.alibi": True,
            "attn_config.alibi_bias_max": 8,
            "attn_config.rope": False,
            "expansion_ratio": 4,
            "ffn_config.ffn_hidden_size": None,
            "no_bias": True,
            "tie_word_embeddings": True,
        },
        config=_mpt,
        names={},
    ),
    StandIn(
        fixed={
            "attn_config.alibi": False,
            "attn_config.rope": False,
            "learned_pos_emb": True,
            **_PLAIN_ATTENTION,
        },
        config=_gpt2,
        names={
            "blocks": "h",
            "norm_1": "ln_1",
            "norm_2": "ln_2",
            "norm_f": "ln_f",
            "Wqkv": "c_attn",
            "out_proj": "c_proj",
            "ffn": "mlp",
            "up_proj": "c_fc",
            "down_proj": "c_proj",
        },
        value=_transposed,
    ),
    StandIn(
        fixed={
            "attn_config.alibi": False,
            "attn_config.rope": True,
            "attn_config.rope_impl": "hf",
            "attn_config.rope_hf_config.type": "no_scaling",
            **_PLAIN_ATTENTION,
        },
        config=_gpt_neox,
        names={
            "transformer": "gpt_neox",
            "wte": "embed_in",
            "lm_head": "embed_out",
            "blocks": "layers",
            "norm_1": "input_layernorm",
            "norm_2": "post_attention_layernorm",
            "norm_f": "final_layer_norm",
            "attn": "attention",
            "Wqkv": "query_key_value",
            "out_proj": "dense",
            "ffn": "mlp",
            "up_proj": "dense_h_to_4h",
            "down_proj": "dense_4h_to_h",
        },
        value=_by_head,
    ),
)


def stand_in(config: Mapping[str, Any]) -> StandIn | None:
    """The model of transformers that computes what this MPT does; ``None`` if there is none.

    MPT itself for ALiBi, GPT-2 for learned positions, GPT-NeoX for rotary ones.

    Args:
        config: of llm-foundry's MPT, as a checkpoint holds it.
    """
    norm = str(config.get("norm_type", _NORMS[0])).lower()
    if norm not in _NORMS:
        return None
    for candidate in _STAND_INS:
        wanted = {**_NONE_DOES, **candidate.fixed}
        if all(
            _at(config, key, _LLM_FOUNDRYS.get(key, value)) == value
            for key, value in wanted.items()
        ):
            return candidate
    return None


def _at(config: Any, key: str, default: Any) -> Any:
    for part in key.split("."):
        config = config.get(part, default) if isinstance(config, Mapping) else default
    return config
