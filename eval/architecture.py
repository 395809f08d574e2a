"""The models that checkpoints are of, as transformers knows them: importing llm-foundry is slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, MptConfig, PreTrainedModel

from dept.options import ConfigError

# What transformers' own MPT always does, or cannot do; by key of llm-foundry's config. What only
# training sees (dropout, initialisation), or how attention is computed, is not in the list.
_FIXED = {
    "attention_bias": False,
    "attn_config.alibi": True,
    "attn_config.alibi_bias_max": 8,
    "attn_config.attn_logit_softcapping": None,
    "attn_config.attn_temperature_tuning.attn_scale": 0.0,
    "attn_config.attn_type": "multihead_attention",
    "attn_config.attn_uses_sequence_id": False,
    "attn_config.fused_qkv": True,
    "attn_config.kv_dim": None,
    "attn_config.nope": False,
    "attn_config.qk_gn": False,
    "attn_config.qk_ln": False,
    "attn_config.rope": False,
    "attn_config.sliding_window_size": -1,
    "block_overrides": None,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "fc_type.name": "torch",
    "ffn_config.ffn_act_fn": None,
    "ffn_config.ffn_hidden_size": None,
    "ffn_config.ffn_type": "mptmlp",
    "final_logit_softcapping": None,
    "head_dim": None,
    "learned_pos_emb": False,
    "logit_scale": None,
    "no_bias": True,
    "tie_word_embeddings": True,
}
_NORMS = ("layernorm", "low_precision_layernorm")

# Of a machine, or of a model on the hub that the run began with; a class named in `auto_map` is
# code of others, which whoever loads an export with remote code would run.
_NOT_ARCHITECTURE = ("_name_or_path", "auto_map", "torch_dtype", "transformers_version")


def beyond_native(config: Mapping[str, Any]) -> str | None:
    """Why transformers' own MPT cannot stand for this one; ``None`` if it can.

    Args:
        config: of llm-foundry's MPT, as a checkpoint holds it, with its defaults filled in.
    """
    for key, fixed in _FIXED.items():
        value: Any = config
        for part in key.split("."):
            value = value.get(part, fixed) if isinstance(value, Mapping) else fixed
        if value != fixed:
            return f"{key} is {value}, and transformers' own MPT has {fixed}"
    norm = str(config.get("norm_type", _NORMS[0])).lower()
    return (
        None if norm in _NORMS else f"norm_type is {norm}, and transformers' own MPT has layernorm"
    )


def build(
    config: Mapping[str, Any], vocab_size: int, *, native: bool = True, device: str = "cpu"
) -> PreTrainedModel:
    """An untrained model, in evaluation mode, in float32.

    Args:
        config: what a checkpoint holds: of llm-foundry's MPT, or of any model of transformers.
        vocab_size: rows of its token matrices.
        native: prefer transformers' own MPT to llm-foundry's where both can.
        device: where its parameters are; ``meta`` for a model without values.

    Returns:
        transformers' own model where there is one of that architecture, llm-foundry's otherwise.

    Raises:
        ConfigError: this machine or this version of transformers cannot build it.
    """
    content = {k: v for k, v in config.items() if k not in _NOT_ARCHITECTURE}
    content["vocab_size"] = vocab_size
    try:
        if content["model_type"] == "mpt" and (not native or beyond_native(config) is not None):
            return _mpt_of_llmfoundry(content, device)
        if content["model_type"] == "mpt":
            known = _native_mpt(content)
        else:
            known = AutoConfig.for_model(content.pop("model_type"), **content)
        with torch.device(device):
            return AutoModelForCausalLM.from_config(known, torch_dtype=torch.float32).eval()
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"a {config['model_type']} of this config cannot be built here "
            f"({str(error).splitlines()[0]}): choose a checkpoint of another model"
        ) from error


def _mpt_of_llmfoundry(content: dict[str, Any], device: str) -> PreTrainedModel:
    from llmfoundry.models.mpt import MPTConfig, MPTForCausalLM

    content |= {
        "attn_config": {**content["attn_config"], "attn_impl": "torch"},  # not flash: runs anywhere
        "init_device": device,
    }
    return MPTForCausalLM(MPTConfig(**content)).eval()


def _native_mpt(config: Mapping[str, Any]) -> MptConfig:
    same = ("d_model", "n_heads", "n_layers", "expansion_ratio", "max_seq_len", "vocab_size")
    attention = {key: config["attn_config"].get(key) for key in ("clip_qkv", "softmax_scale")}
    return MptConfig(
        **{key: config[key] for key in same},
        layer_norm_epsilon=config.get("norm_eps", 1e-5),
        learned_pos_emb=False,
        attn_config={"alibi": True, **attention},
        tie_word_embeddings=True,
    )
