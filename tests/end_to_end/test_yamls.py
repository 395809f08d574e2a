"""Every yaml: its pieces fit llm-foundry, and the cost model counts what llm-foundry builds."""

import pytest
import yaml
from experiments import NAMES, resolved
from training import REPOSITORY, overrides

from dept.config import extends
from dept.costs.parameters import mpt_parameters

PAPER = [f"{corpus}/{size}" for corpus in ("pile", "mc4") for size in ("125m", "350m", "1b")]
PREPARED_BY = {"pile": "hub_domains", "mc4": "hub_languages"}
ROUNDS = {"pile/125m": "10ep", "pile/350m": "27ep", "mc4/125m": "10ep", "mc4/1b": "14ep"}
METHODS = ("glob", "trim", "spec", "spec_opt", "std", "act")


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_experiments_are_there_and_fit_their_corpus(name, tmp_path):
    corpus = name.split("/")[0]
    path = REPOSITORY / f"data_prep/corpora/{PREPARED_BY[corpus]}.yaml"
    prepared_by = yaml.safe_load(path.read_text())
    run_names = set()
    for method in METHODS:
        config = extends.resolve(resolved(f"{name}_{method}", tmp_path))
        run_names.add(config["run_name"])
        loader = config["train_loader"]
        assert loader["corpus"] == prepared_by["corpus"] == corpus
        assert config["max_seq_len"] == prepared_by["sequence_length"] == 2048
        assert config["tokenizer"]["name"] == f"tokenizers/{corpus}/global"
        assert "vocab_size" not in config["model"]  # that of the tokenizer, when it is prepared
        vocabulary, tokenizers = config["variables"]["vocabulary"], prepared_by["tokenizers"]
        assert vocabulary["own"] == tokenizers["own"]["vocab_size"]
        stated = tokenizers["global"].get("vocab_size", vocabulary["global"])
        assert vocabulary["global"] == stated
        steps = config["algorithms"].get("dept", {}).get("local_steps", loader.get("epoch_batches"))
        assert steps == 500
        assert config["algorithms"]["gradient_clipping"]["clipping_threshold"] == 1.0
        assert config["max_duration"] == ROUNDS.get(name, config["max_duration"])
        if method == "act":
            assert config["callbacks"]["active_forgetting"]["every"] == 500
    assert len(run_names) == len(METHODS)


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_one_of_llm_foundrys(prepared, monkeypatch, tmp_path, name):
    """Its keys are known, before and after what DEPT adds, and the builders take its values."""
    from llmfoundry.command_utils.train import validate_config
    from llmfoundry.utils import builders
    from llmfoundry.utils.config_utils import (
        TRAIN_CONFIG_KEYS,
        TrainConfig,
        make_dataclass_and_log_config,
    )

    from dept.costs.meta_device import build
    from dept.training import registration

    registration.register()
    monkeypatch.chdir(REPOSITORY)

    def validated(*more, transforms):
        config = resolved(name, tmp_path, *more)
        _, result = make_dataclass_and_log_config(
            config, TrainConfig, TRAIN_CONFIG_KEYS, transforms=transforms
        )
        validate_config(result)
        return result

    as_written = validated(transforms=["update_batch_size_info"])
    rows = (as_written.variables.get("vocabulary") or {}).get("global", 1000)
    model = build(as_written.model, rows)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    optimizer = dict(as_written.optimizer)
    builders.build_optimizer(model, optimizer.pop("name"), optimizer)
    for algorithm, options in as_written.algorithms.items():
        builders.build_algorithm(algorithm, options)

    completed = validated(*overrides(prepared), transforms="all")
    scheduler = dict(completed.scheduler)
    builders.build_scheduler(scheduler.pop("name"), scheduler)
    for callback, options in completed.callbacks.items():
        builders.build_callback(callback, options, vars(completed))


ALIBI = {"attn_config": {"attn_impl": "torch", "alibi": True}}
HEADS = {"attn_type": "grouped_query_attention", "kv_n_heads": 2}
SHAPES = {
    "defaults": {},
    "alibi": ALIBI,
    "no_bias": {"no_bias": True},
    "attention_bias": {"no_bias": True, "attention_bias": True},
    "untied": {"tie_word_embeddings": False, "no_bias": True, **ALIBI},
    "rmsnorm": {"norm_type": "low_precision_rmsnorm"},
    "grouped": {"attn_config": {**HEADS, "qk_ln": True}},
    "grouped_norms": {"attn_config": {**HEADS, "qk_gn": True}, "no_bias": True},
    "multiquery": {"attn_config": {"attn_type": "multiquery_attention", "fused_qkv": False}},
    "kv_dim": {"attn_config": {"fused_qkv": False, "kv_dim": 48}},
    "head_dim": {"head_dim": 24},
    "glu": {"ffn_config": {"ffn_type": "mptglu", "ffn_hidden_size": 100}},
    "expansion": {"expansion_ratio": 2.5},
}


@pytest.mark.end_to_end
@pytest.mark.parametrize("shape", SHAPES)
def test_the_formula_counts_what_llm_foundry_builds(shape):
    from dept.costs.meta_device import built_parameters

    small = {"name": "mpt_causal_lm", "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 16}
    model = {**small, **SHAPES[shape]}
    assert built_parameters(model, 100) == mpt_parameters(model)


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", ["dept_spec", "pile/125m_std", "pile/350m_glob", "mc4/1b_trim"])
def test_the_formula_counts_the_bodies_of_the_experiments(name, tmp_path):
    from dept.costs.meta_device import built_parameters

    model = extends.resolve(resolved(name, tmp_path))["model"]
    assert built_parameters(model, 1000) == mpt_parameters(model)


@pytest.mark.end_to_end
def test_a_model_without_a_formula_is_counted_by_building_it(prepared, capsys, monkeypatch):
    import json

    from dept.costs.__main__ import main

    monkeypatch.chdir(REPOSITORY)
    small = ["variables.corpus=tiny", f"train_loader.root={prepared}"]
    assert main(["yamls/dept_spec_llama.yaml", *small, "--build", "--json"]) == 0
    (figures,) = json.loads(capsys.readouterr().out).values()
    blocks = 4 * (4 * 128 * 128 + 3 * 128 * 344 + 2 * 128)
    assert figures["parameters"]["body"] == blocks + 128
    held = figures["vocabulary"]["held"]
    assert figures["parameters"]["embedding"] == round(held * 128)  # a tied head counts once
