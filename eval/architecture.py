"""The models that checkpoints are of, as transformers knows them: importing llm-foundry is slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, MptConfig, PreTrainedModel

# What transformers' own MPT always does, or cannot do; by key of llm-foundry's config.
_FIXED = {
    "attn_config.alibi": True,
    "attn_config.attn_type": "multihead_attention",
    "attn_config.qk_ln": False,
    "attn_config.qk_gn": False,
    "attn_config.rope": False,
    "attn_config.sliding_window_size": -1,
    "attn_config.attn_logit_softcapping": None,
    "attn_config.clip_qkv": None,
    "attn_config.alibi_bias_max": 8,
    "attn_config.kv_dim": None,
    "attn_config.nope": False,
    "block_overrides": None,
    "embedding_fraction": 1.0,
    "ffn_config.ffn_type": "mptmlp",
    "ffn_config.ffn_act_fn": None,
    "final_logit_softcapping": None,
    "head_dim": None,
    "learned_pos_emb": False,
    "logit_scale": None,
    "no_bias": True,
    "norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
_NORMS = ("layernorm", "low_precision_layernorm")


def beyond_native(config: Mapping[str, Any]) -> str | None:
    """Why transformers' own MPT cannot stand for this one; ``None`` if it can.

    Args:
        config: of llm-foundry's MPT.
    """
    for key, fixed in _FIXED.items():
        value: Any = config
        for part in key.split("."):
            value = value.get(part, fixed) if isinstance(value, Mapping) else fixed
        if value != fixed:
            return f"{key} is {value}, and transformers' own MPT has {fixed}"
    norm = config.get("norm_type", _NORMS[0])
    return (
        None if norm in _NORMS else f"norm_type is {norm}, and transformers' own MPT has layernorm"
    )


def build(config: Mapping[str, Any], vocab_size: int) -> PreTrainedModel:
    """An untrained model, in evaluation mode.

    Args:
        config: what a checkpoint holds: of llm-foundry's MPT, or of any model of transformers.
        vocab_size: rows of its token matrices.

    Returns:
        transformers' own model where there is one of that architecture, llm-foundry's otherwise.
    """
    content = {**config, "vocab_size": vocab_size}
    if content["model_type"] != "mpt":
        kind = content.pop("model_type")
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **content)).eval()
    if beyond_native(config) is None:
        return AutoModelForCausalLM.from_config(_native_mpt(content)).eval()
    from llmfoundry.models.mpt import MPTConfig, MPTForCausalLM

    return MPTForCausalLM(MPTConfig(**content)).eval()


def _native_mpt(config: Mapping[str, Any]) -> MptConfig:
    same = ("d_model", "n_heads", "n_layers", "expansion_ratio", "max_seq_len", "vocab_size")
    scale = config["attn_config"].get("softmax_scale")
    return MptConfig(
        **{key: config[key] for key in same},
        learned_pos_emb=False,
        attn_config={"alibi": True, "softmax_scale": scale},
        tie_word_embeddings=True,
    )
