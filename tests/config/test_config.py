"""Yamls: what they extend, what DEPT adds, and what is refused before anything slow is imported."""

import json
import re
import shutil

import experiments
import pytest
from omegaconf import OmegaConf
from refusals import refusal
from training import load, overrides

from dept.config import complete as configs
from dept.config import extends, provenance
from dept.errors import ConfigError

INTERVAL = "algorithms.dept.inner_state_interval"


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def plain(config):
    return OmegaConf.to_container(config, resolve=True)


def test_a_yaml_goes_over_what_it_extends_and_overrides_over_both(tmp_path):
    write(
        tmp_path,
        base="a: {x: 1, y: 1, z: 1}\nseed: ${a.x}\n",
        middle="extends: base.yaml\na: {y: 2, z: 2}\n",
        other="b: 1\na: {z: 4}\n",
        top="extends: [middle.yaml, other.yaml]\na: {w: 3}\n",
    )
    config = extends.load(tmp_path / "top.yaml", ["a.x=5"])
    assert plain(config) == {"a": {"x": 5, "y": 2, "z": 4, "w": 3}, "b": 1, "seed": 5}


def test_a_printed_yaml_is_the_resolved_one_with_where_each_key_comes_from(tmp_path, monkeypatch):
    write(
        tmp_path,
        base="a: {x: 1, y: '1', z: null}\nseed: ${a.x}\nlist: [1, {b: 2}]\nempty: {}\n",
        top="extends: base.yaml\na: {z: 'on'}\n",
    )
    monkeypatch.chdir(tmp_path)
    printed = provenance.annotated("top.yaml", ["a.x=5"])
    assert printed.splitlines() == [
        "a:",
        "  x: 5  # the command",
        "  y: '1'  # base.yaml",
        "  z: 'on'  # top.yaml",
        "seed: 5  # base.yaml",
        "list: [1, {b: 2}]  # base.yaml",
        "empty: {}  # base.yaml",
    ]
    again = OmegaConf.create(printed)
    assert plain(again) == plain(extends.load("top.yaml", ["a.x=5"]))


@pytest.mark.parametrize(
    ("start", "overrides", "message"),
    [
        ("absent.yaml", [], "absent.yaml does not exist"),
        ("orphan.yaml", [], "gone.yaml, which orphan.yaml extends, does not exist"),
        ("one.yaml", [], "one.yaml -> two.yaml -> one.yaml extend each other in a circle"),
        ("list.yaml", [], "list.yaml is not a mapping"),
        ("fine.yaml", ["seed"], "'seed' is not an override: write key=value"),
    ],
)
def test_a_yaml_that_cannot_be_read_is_refused(tmp_path, start, overrides, message):
    write(
        tmp_path,
        orphan="extends: gone.yaml",
        one="extends: two.yaml",
        two="extends: one.yaml",
        list="- 1",
        fine="seed: 1",
    )
    with pytest.raises(ConfigError, match=message):
        extends.load(tmp_path / start, overrides)


@pytest.mark.parametrize(
    ("experiment", "override", "message"),
    [
        ("dept_spec", "algorithms.dept.locl_steps=3", "'locl_steps': did you mean local_steps?"),
        ("dept_spec", "algorithms.dept.variant=spec2", "glob, trim, spec, spec_opt"),
        ("dept_spec", "algorithms.dept.local_steps=0", "local_steps is 0: set it to a whole"),
        ("dept_spec", "algorithms.dept.sources_per_round=5", "a value from 1 to 4"),
        ("dept_spec", "algorithms.dept.ranks_per_worker=0", "ranks_per_worker is 0: set it to a"),
        ("dept_spec", "algorithms.dept.ranks_per_worker=2", "does not divide the 1 processes"),
        ("dept_spec", "algorithms.dept.worker_timeout=0", "set it to seconds above 0"),
        ("dept_spec", "fsdp_config={state_dict_type: sharded}", "DEPT saves whole parameters"),
        ("dept_spec", "tp_config={strategy: ffn}", "tensor parallelism cannot replace embeddings"),
        ("dept_spec", "algorithms.dept.inner_state=drop", "inner_state is 'drop': .* reset, keep"),
        (
            "dept_spec",
            "algorithms.dept.inner_state_interval={exp_avg: 2}",
            "inner_state_interval is of inner_state: average, but inner_state is keep: remove it",
        ),
        (
            "dept_spec",
            f"{INTERVAL}={{exp_avg: 0}}",
            "set it to rounds of 1 or more for some of exp",
        ),
        ("dept_spec", f"{INTERVAL}={{momentum: 2}}", "rounds of 1 or more .* exp_avg, exp_avg_sq"),
        ("dept_spec", "algorithms.dept.weighting=size", "weighting is 'size'"),
        ("dept_spec", "algorithms.dept.sampling=random", "'random': .* uniform, stratified"),
        (
            "dept_spec",
            "algorithms.dept.outer_optimizer.name=fedprox",
            "'fedprox': set it to one of ",
        ),
        ("dept_spec", "algorithms.dept.outer_optimizer.name=fedavgg", "did you mean fedavg?"),
        ("dept_spec", "algorithms.dept.outer_optimizer.name=decoupled_lion", "decoupled_lionw?"),
        ("dept_spec", "callbacks.speed_monitr={}", "'speed_monitr': did you mean speed_monitor?"),
        ("dept_spec", "loggers.wandbb={}", "'wandbb': did you mean wandb?"),
        ("dept_spec", "optimizer.name=decoupled_adam", "did you mean decoupled_adamw?"),
        ("dept_spec", "model.n_layer=2", "'n_layer': did you mean n_layers?"),
        ("dept_spec", "model.n_heads=3", "d_model is 32, which model.n_heads = 3 do not divide"),
        ("dept_spec", "max_duratoin=2ep", "'max_duratoin': did you mean max_duration?"),
        ("dept_spec", "optimizer.lr=0", "lr is 0: set it to a number above 0"),
        ("dept_spec", "eval_interval=1epoch", "set it to a time such as 1ep"),
        ("std", "callbacks.frozen_start={names: blocks, until: 2ba}", "names is 'blocks'"),
        ("std", "callbacks.frozen_start={names: [blocks], until: 0.1dur}", "until is '0.1dur'"),
        ("dept_spec", "callbacks.frozen_start={names: [a], until: 2ba}", "is for baselines"),
        ("std", "train_loader.name=mixtur", "did you mean mixture?"),
        ("dept_spec", "algorithms.dept.outer_optimizer.lrr=1", "fedavg': .* unexpected .*lrr"),
        ("dept_spec", "algorithms.dept.outer_optimizer={name: fedadam, tau: 0}", "tau is 0: set"),
        ("dept_trim", "algorithms.dept.outer_optimizer.name=adafactor", "row_var is not by elem"),
        ("dept_spec", "train_loader.corpsu=tiny", "'corpsu': did you mean corpus?"),
        ("dept_spec", "train_loader.corpus=nowhere", "make data CORPUS=nowhere"),
        ("dept_spec", "train_loader.sources=[code,latin]", "names 'latin', .* manual, code, mail"),
        ("dept_spec", "train_loader.name=text", "need each other"),
        ("dept_spec", "max_duration=10ba", "a whole number of rounds, such as 10ep"),
        ("dept_spec", "max_seq_len=64", "32 tokens long: set it to 32"),
        ("dept_spec", "spin_dataloaders=true", "set it to false"),
        ("dept_glob", "model.vocab_size=100", "go up to 1199: set it to 1200 or more"),
        ("std", "train_loader.tau=-1", "tau is -1: set it to a number from 0 to 10"),
        ("std", "train_loader.taau=1", "'taau': did you mean tau?"),
        ("std", "train_loader.epoch_batches=0", "epoch_batches is 0: set it to a whole number"),
        ("continued", "seed=1", "variables.checkpoint is not set: add variables.checkpoint=..."),
        ("std", "max_seq_len=${length}", "Interpolation key 'length' not found"),
        ("continued", "variables.checkpoint=nowhere", "nowhere is not a checkpoint, nor a folder"),
        (
            "continued",
            "variables={checkpoint: x, embedding: own}",
            "is 'own': .* random, pretrained",
        ),
        ("isolated", "variables.source=latin", "names 'latin', .* tools, held"),
    ],
)
def test_what_cannot_run_is_refused(prepared, capsys, monkeypatch, experiment, override, message):
    said = refusal(prepared, capsys, monkeypatch, experiment, override)
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("processes", "override", "message"),
    [
        (3, "seed=1", "3 workers cannot share .* = 4 equally: start 1, 2 or 4 workers, or set"),
        (4, "algorithms.dept.sources_per_round=2", "start 1 or 2 workers, or set .* to 4"),
        (6, "algorithms.dept.ranks_per_worker=4", "does not divide the 6 processes"),
        (8, "global_train_batch_size=3", "set it to a multiple of ranks_per_worker = 2"),
    ],
)
def test_processes_that_cannot_share_the_work_are_refused(
    prepared, capsys, monkeypatch, processes, override, message
):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    more = ["algorithms.dept.ranks_per_worker=2"] if "batch" in override else []
    said = refusal(prepared, capsys, monkeypatch, "dept_spec", *more, override)
    assert re.search(message, said), said
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(AssertionError):  # one process speaks for all
        refusal(prepared, capsys, monkeypatch, "dept_spec", *more, override)


def test_damaged_data_is_refused(prepared, capsys, monkeypatch, tmp_path):
    broken = tmp_path / "root"
    shutil.copytree(prepared, broken, ignore=shutil.ignore_patterns("runs"))
    index = broken / "data/tiny/code/global/val/index.json"
    whole = index.read_text()
    index.unlink()
    assert "index.json does not exist" in refusal(broken, capsys, monkeypatch, "dept_glob")
    index.write_text(whole)
    stats = broken / "data/tiny/mail/global/stats.json"
    facts = json.loads(stats.read_text())
    facts["tokenizer"]["hash"] = "0" * 64
    stats.write_text(json.dumps(facts))
    said = refusal(broken, capsys, monkeypatch, "dept_glob")
    assert "data/tiny/mail/global was written with another tokenizer" in said


def test_another_tokenizer_than_the_shards_is_refused(prepared, capsys, monkeypatch):
    other = f"tokenizer.name={prepared}/tokenizers/tiny/code"
    said = refusal(prepared, capsys, monkeypatch, "dept_spec", other)
    assert "another tokenizer than" in said


def test_a_run_goes_on_only_with_its_own_settings(prepared, capsys, monkeypatch):
    config = plain(load(prepared, "dept_trim", "run_name=settings"))
    folder = prepared / "runs" / "settings"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(configs.complete(config)))
    changed = ["run_name=settings", "model.n_heads=2", "model.n_layers=2", "optimizer.lr=1.0"]
    small = ["algorithms.dept.local_steps=3", "global_train_batch_size=4"]
    said = refusal(prepared, capsys, monkeypatch, "dept_trim", *changed, *small)
    assert "optimizer.lr = 0.008, the yaml says 1.0" in said and "run_name" in said


@pytest.mark.parametrize("experiment", experiments.NAMES)
def test_every_experiment_can_run(prepared, tmp_path, experiment):
    config = plain(experiments.resolved(experiment, tmp_path, *overrides(prepared)))
    configs.check(config)
    variant = config["algorithms"].get("dept", {}).get("variant")
    only = config["train_loader"].get("sources")
    del config["seed"]
    config = configs.complete(config)
    assert config["seed"] == 17  # which the summary has, after all training
    labels = [loader["label"] for loader in config["eval_loaders"]]
    has_global_embedding = variant in ("glob", "trim", None)
    assert labels == (only or ["manual", "code", "mail", "tools", *["held"] * has_global_embedding])
    if variant:
        assert config["scheduler"]["name"] == "sequential_steps"
        assert config["spin_dataloaders"] is False
        own = {loader["label"]: loader["written_with"] for loader in config["eval_loaders"]}
        assert own["code"] == ("code" if variant == "spec_opt" else "global")


def test_a_plain_llm_foundry_yaml_is_left_as_it_is():
    config = {"train_loader": {"name": "text", "dataset": {}}, "model": {"name": "mpt_causal_lm"}}
    configs.check(config)
    assert configs.complete(dict(config)) == config
