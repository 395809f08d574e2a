"""Which MPTs a model of transformers computes, and that it does."""

import pytest
import torch

from dept.errors import ConfigError
from dept.evaluation.models.architecture import assemble
from dept.evaluation.models.mpt import stand_in

PLAIN = {
    "model_type": "mpt",
    "d_model": 24,
    "n_heads": 2,
    "n_layers": 2,
    "max_seq_len": 16,
    "no_bias": True,
    "norm_eps": 1e-5,
    "expansion_ratio": 4,
    "attn_config": {"alibi": True, "attn_impl": "torch"},
}
LEARNED = {"attn_config.alibi": False, "learned_pos_emb": True}
ROTARY = {"attn_config.alibi": False, "attn_config.rope": True, "attn_config.rope_impl": "hf"}
BIASED = {"no_bias": False, "norm_eps": 1e-3, "expansion_ratio": 1.5}

SAME = {
    "alibi": {},
    "alibi, 3 heads": {"n_heads": 3},
    "alibi, clipped and scaled": {
        "attn_config.clip_qkv": 0.5,
        "attn_config.softmax_scale": 0.9,
        "norm_eps": 1e-2,
        "norm_type": "LayerNorm",
    },
    "learned": LEARNED,
    "learned, biased": {**LEARNED, **BIASED},
    "learned, untied": {**LEARNED, "tie_word_embeddings": False, "ffn_config.ffn_hidden_size": 20},
    "rotary": {**ROTARY, "d_model": 36, "n_heads": 3},
    "rotary, biased": {**ROTARY, **BIASED, "attn_config.rope_theta": 500},
    "rotary, untied": {
        **ROTARY,
        "tie_word_embeddings": False,
        "n_heads": 3,
        "attention_bias": True,
    },
}

# One key each that none of the three can follow.
OTHER = {
    "alibi": [
        {"attention_bias": True},
        {"attn_config.alibi_bias_max": 4},
        {"no_bias": False},
        {"expansion_ratio": 2},
        {"ffn_config.ffn_hidden_size": 40},
        {"tie_word_embeddings": False},
    ],
    "learned": [{"attn_config.clip_qkv": 1.0}, {"attn_config.softmax_scale": 0.5}],
    "rotary": [
        {"attn_config.rope_impl": "dail"},
        {"attn_config.rope_hf_config.type": "linear"},
        {"attn_config.clip_qkv": 1.0},
    ],
    "all": [
        {"attn_config.attn_logit_softcapping": 5.0},
        {"attn_config.attn_temperature_tuning.attn_scale": 0.1},
        {"attn_config.attn_type": "multiquery_attention"},
        {"attn_config.attn_uses_sequence_id": True},
        {"attn_config.fused_qkv": False},
        {"attn_config.kv_dim": 8},
        {"attn_config.nope": True},
        {"attn_config.qk_gn": True},
        {"attn_config.qk_ln": True},
        {"attn_config.sliding_window_size": 4},
        {"block_overrides": {"order": []}},
        {"embedding_fraction": 0.5},
        {"fc_type.name": "te"},
        {"ffn_config.ffn_act_fn": {"name": "relu"}},
        {"ffn_config.ffn_type": "mptglu"},
        {"final_logit_softcapping": 5.0},
        {"head_dim": 8},
        {"logit_scale": 0.5},
        {"norm_type": "rmsnorm"},
    ],
}
# What changes no logits: of training alone, of how it is computed, or handed on.
ELSE = {
    *("attn_config.attn_impl", "attn_config.attn_pdrop", "attn_config.rope_theta"),
    *("attn_config.rope_dail_config", "attn_config.rope_hf_config.factor"),
    *("attn_config.attn_temperature_tuning.floor_scale", "use_cache", "use_pad_tok_in_ffn"),
    *("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size", "norm_eps"),
    *("emb_pdrop", "resid_pdrop", "init_config", "init_device", "ffn_config.fc_type"),
}


def config_of(changes):
    """A config with some keys, `a.b` of nested ones, set."""
    config = {**PLAIN, "attn_config": dict(PLAIN["attn_config"])}
    for key, value in changes.items():
        *outer, last = key.split(".")
        inner = config
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return config


@pytest.mark.parametrize("kind", OTHER)
def test_no_other_mpt_is_taken_for_one(kind):
    for base in {"alibi": [{}], "learned": [LEARNED], "rotary": [ROTARY]}.get(
        kind, [{}, LEARNED, ROTARY]
    ):
        assert stand_in(config_of(base)) is not None
        for change in OTHER[kind]:
            assert stand_in(config_of({**base, **change})) is None, change


def test_an_mpt_without_positions_is_none_of_them():
    assert stand_in(config_of({"attn_config.alibi": False, "learned_pos_emb": False})) is None


@pytest.mark.end_to_end
@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_logits_are_llm_foundrys(changes):
    from llmfoundry.models.mpt import MPTConfig, MPTForCausalLM

    torch.manual_seed(0)
    config = {**MPTConfig(**config_of(changes)).to_dict(), "vocab_size": 50}
    built = MPTForCausalLM(MPTConfig(**config)).eval()
    for parameter in built.parameters():  # biases and norms too, as if it had been trained
        parameter.data += 0.3 * torch.randn_like(parameter)
    parameters = dict(built.named_parameters())
    ids = torch.randint(50, (3, 16))
    with torch.no_grad():
        expected = built(input_ids=ids).logits
        for native in (True, False):
            model = assemble(config, parameters, native=native)
            torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=1e-4)
            ours = type(model).__module__.startswith("transformers.")
            assert ours is native and not model.training
    assert float(expected.std()) > 0.1


@pytest.mark.end_to_end
def test_every_key_of_llm_foundrys_config_is_thought_of():
    """A key that a later llm-foundry adds must be decided on, or logits could silently differ."""
    from llmfoundry.models.mpt import MPTConfig
    from transformers import PretrainedConfig

    def flat(config, prefix=""):
        for key, value in config.items():
            name = prefix + key
            known = name in ELSE or any(name in change for change in decided)
            yield from flat(value, f"{name}.") if isinstance(value, dict) and not known else [name]

    decided = [*(change for changes in OTHER.values() for change in changes), *SAME.values()]
    of_any_model = PretrainedConfig().to_dict()
    own = {k: v for k, v in MPTConfig().to_dict().items() if k not in of_any_model}
    keys = set(flat(own))
    assert len(keys) > 40
    assert keys - ELSE - {key for change in decided for key in change} == set()


def test_parameters_of_another_model_are_refused():
    model = assemble(PLAIN, {"transformer.wte.weight": torch.zeros(5, 24), **_blocks()})
    values = model.state_dict()
    values["transformer.extra"] = torch.zeros(1)
    with pytest.raises(ConfigError, match=r"has \['transformer.extra'\] beside"):
        assemble(PLAIN, values)
    del values["transformer.extra"], values["transformer.norm_f.weight"]
    with pytest.raises(ConfigError, match=r"lacks \['transformer.norm_f.weight'\]"):
        assemble(PLAIN, values)
    with pytest.raises(ConfigError, match="size mismatch"):
        assemble({**PLAIN, "d_model": 12}, {"transformer.wte.weight": torch.zeros(5, 24)})


def _blocks():
    shapes = {"attn.Wqkv": (72, 24), "attn.out_proj": (24, 24)}
    shapes |= {"ffn.up_proj": (96, 24), "ffn.down_proj": (24, 96), "norm_1": (24,), "norm_2": (24,)}
    blocks = {
        f"transformer.blocks.{i}.{name}.weight": torch.zeros(shape)
        for i in range(2)
        for name, shape in shapes.items()
    }
    return blocks | {"transformer.norm_f.weight": torch.zeros(24)}
