"""The section ``model`` of a yaml: keys of llm-foundry's models, and which of them fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dept.config.schema import (
    ANYTHING,
    FLAG,
    FRACTION,
    MAPPING,
    TEXT,
    ListOf,
    Named,
    Optional,
    Section,
    either,
    integer,
    number,
    one_of,
)
from dept.errors import ConfigError

# Numbers of a norm for each feature: a weight, and a bias unless `no_bias` removes it.
NORMS = {
    "layernorm": 2,
    "low_precision_layernorm": 2,
    "rmsnorm": 1,
    "low_precision_rmsnorm": 1,
    "triton_rmsnorm": 1,
}

MOST = 1_000_000  # of a width or a number of layers; a typing error is more

ATTENTION = Section(
    {
        "attn_type": one_of(
            "multihead_attention", "multiquery_attention", "grouped_query_attention"
        ),
        "attn_pdrop": FRACTION,
        "attn_impl": one_of("torch", "flash"),
        "qk_ln": FLAG,
        "qk_gn": FLAG,
        "fused_qkv": FLAG,
        "clip_qkv": Optional(number(0, above=True)),
        "softmax_scale": Optional(number(0, above=True)),
        "attn_uses_sequence_id": FLAG,
        "sliding_window_size": either(one_of(-1), integer(1)),
        "attn_logit_softcapping": Optional(number(0, above=True)),
        "alibi": FLAG,
        "alibi_bias_max": number(0, 1e4, above=True),
        "rope": FLAG,
        "nope": FLAG,
        "rope_theta": number(1, 1e12),
        "rope_impl": one_of("hf", "dail"),
        "rope_dail_config": MAPPING,
        "rope_hf_config": MAPPING,
        "attn_temperature_tuning": MAPPING,
        "kv_n_heads": Optional(integer(1, MOST)),
        "kv_dim": Optional(integer(1, MOST)),
        "norm_type": one_of(*NORMS),
        "norm_eps": number(0, 1, above=True),
    }
)
FFN = Section(
    {
        "ffn_type": one_of("mptmlp", "mptglu", "te_ln_mlp", "torch_dmoe", "mb_moe", "mb_dmoe"),
        "ffn_hidden_size": Optional(integer(1, MOST)),
        "ffn_act_fn": Optional(MAPPING),
    },
    is_open=True,
)
INIT = Section(
    {
        "name": one_of(
            "default_",
            "baseline_",
            "kaiming_uniform_",
            "kaiming_normal_",
            "neox_init_",
            "small_init_",
            "xavier_uniform_",
            "xavier_normal_",
        ),
        "fan_mode": one_of("fan_in", "fan_out"),
        "init_nonlinearity": one_of("linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"),
        "init_div_is_residual": either(FLAG, number(0, above=True)),
        "emb_init_std": Optional(number(0, 1e3)),
        "emb_init_uniform_lim": Optional(ANYTHING),
        "init_std": Optional(number(0, 1e3)),
        "init_gain": number(0, 1e3),
    }
)
BOTH = {
    "use_train_metrics": FLAG,
    "additional_train_metrics": Optional(ListOf(TEXT)),
    "init_device": one_of("cpu", "meta", "mixed"),
    "master_weights_dtype": Optional(one_of("float32", "float16", "bfloat16")),
}
MPT = Section(
    BOTH
    | {
        "d_model": integer(1, MOST),
        "n_heads": integer(1, MOST),
        "n_layers": integer(1, MOST),
        "head_dim": Optional(integer(1, MOST)),
        "expansion_ratio": number(0, 1000, above=True),
        "max_seq_len": integer(1),
        "vocab_size": integer(1, 100_000_000),
        "resid_pdrop": FRACTION,
        "emb_pdrop": FRACTION,
        "learned_pos_emb": FLAG,
        "attn_config": ATTENTION,
        "ffn_config": FFN,
        "logit_scale": Optional(either(one_of("inv_sqrt_d_model"), number(0, 1e6, above=True))),
        "no_bias": FLAG,
        "attention_bias": Optional(FLAG),
        "embedding_fraction": number(0, 1, above=True),
        "norm_type": one_of(*NORMS),
        "norm_eps": number(0, 1, above=True),
        "use_cache": FLAG,
        "init_config": INIT,
        "fc_type": one_of("torch", "te"),
        "tie_word_embeddings": FLAG,
        "use_pad_tok_in_ffn": FLAG,
        "block_overrides": Optional(MAPPING),
        "final_logit_softcapping": Optional(number(0, above=True)),
        "loss_fn": one_of("torch_crossentropy", "fused_crossentropy"),
    },
)
TRANSFORMERS = Section(
    BOTH
    | {
        "pretrained_model_name_or_path": TEXT,
        "pretrained": FLAG,
        "pretrained_lora_id_or_path": Optional(TEXT),
        "trust_remote_code": FLAG,
        "use_auth_token": FLAG,
        "use_flash_attention_2": FLAG,
        "attn_implementation": Optional(one_of("eager", "sdpa", "flash_attention_2")),
        "load_in_8bit": FLAG,
        "config_overrides": Optional(
            Section({"vocab_size": integer(1, 100_000_000)}, is_open=True)
        ),
        "peft_config": Optional(MAPPING),
        "should_save_peft_only": FLAG,
        "allow_embedding_resizing": FLAG,
        "additional_eval_metrics": Optional(ListOf(TEXT)),
    },
    required=("pretrained_model_name_or_path",),
)
MODEL = Named({"mpt_causal_lm": MPT, "hf_causal_lm": TRANSFORMERS})


def check_parts(model: Mapping[str, Any], sequence_length: int) -> None:
    """Refuse values that each may be, but not together; their types are checked before.

    Raises:
        ConfigError: one sentence that names the keys and the mend.
    """
    if model["name"] == "hf_causal_lm":
        if model.get("load_in_8bit"):
            raise ConfigError("model.load_in_8bit is for models that do not train: remove it")
        return
    width, heads = model.get("d_model", 2048), model.get("n_heads", 16)
    if width % heads:
        raise ConfigError(
            f"model.d_model is {width}, which model.n_heads = {heads} do not divide: set it to "
            f"{width // heads * heads or heads}"
        )
    attention = model.get("attn_config") or {}
    each = model.get("head_dim") or width // heads
    keys = attention.get("kv_n_heads")
    grouped = attention.get("attn_type") == "grouped_query_attention"
    if grouped and (keys is None or heads % keys):
        raise ConfigError(
            f"model.attn_config.kv_n_heads is {keys}: set it to a divisor of n_heads = {heads}"
        )
    if attention.get("rope") and each % 2:
        raise ConfigError(
            f"model.attn_config.rope turns pairs of a head's {each} numbers: let d_model / n_heads "
            f"be even"
        )
    if attention.get("qk_ln") and attention.get("qk_gn"):
        raise ConfigError("model.attn_config has qk_ln and qk_gn: set one of them to false")
    if attention.get("kv_dim") is not None and attention.get("fused_qkv", True):
        raise ConfigError("model.attn_config.kv_dim needs fused_qkv: false beside it")
    positions = model.get("max_seq_len", 2048)
    if positions < sequence_length:
        raise ConfigError(
            f"model.max_seq_len is {positions}, and samples have {sequence_length} tokens: set it "
            f"to {sequence_length} or more"
        )
    name = (model.get("init_config") or {}).get("name", "kaiming_normal_")
    if name == "baseline_" and (model.get("init_config") or {}).get("init_std") is None:
        raise ConfigError("model.init_config.name is baseline_, which needs init_std beside it")
