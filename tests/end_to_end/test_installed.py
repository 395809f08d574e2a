"""The installed package beside llm-foundry: entry points, and llm-foundry's own train command."""

import json
import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import catalogue
import pytest
import yaml
from composer.core import Callback
from llmfoundry import registry
from llmfoundry.utils.config_utils import apply_transforms_to_config

from dept.errors import ConfigError
from dept.training import registration
from dept.training.transform import transform

SAVER = ("llmfoundry", "callbacks", "checkpoints")


@pytest.fixture
def unprepared(monkeypatch):
    """Registries as llm-foundry's own command finds them: without what train.py registers."""
    ours = {key: value for key, value in catalogue.REGISTRY.items() if key != SAVER}
    monkeypatch.setattr(catalogue, "REGISTRY", ours)


def own_yaml(root: Path, folder: Path) -> dict:
    """What a user of llm-foundry may write: nothing but DEPT and its loader is ours."""
    tokenizer = {"name": f"{root}/tokenizers/tiny/global", "kwargs": {"model_max_length": 32}}
    sizes = {"d_model": 32, "n_heads": 2, "n_layers": 2, "expansion_ratio": 4, "max_seq_len": 32}
    return {
        "run_name": folder.name,
        "seed": 3,
        "max_seq_len": 32,
        "tokenizer": tokenizer,
        "model": {"name": "mpt_causal_lm", "loss_fn": "torch_crossentropy", **sizes}
        | {"attn_config": {"attn_impl": "torch", "alibi": True}},
        "algorithms": {"dept": {"variant": "trim", "local_steps": 2}},
        "train_loader": {"name": "sources", "corpus": "tiny", "root": f"{root}", "seed": 3},
        "global_train_batch_size": 2,
        "device_train_microbatch_size": 2,
        "device_eval_batch_size": 16,
        "optimizer": {"name": "decoupled_adamw", "lr": 1e-3},
        "scheduler": {"name": "constant_with_warmup", "t_warmup": "2ba"},
        "max_duration": "2ep",
        "eval_interval": "2ep",
        "precision": "fp32",
        "progress_bar": False,
        "loggers": {"jsonl": {"path": f"{folder}/metrics.jsonl"}},
        "save_folder": f"{folder}/checkpoints",
    }


def test_entry_points_give_what_train_py_registers():
    registration.register()
    ours = {
        (point.group.removeprefix("llmfoundry_"), point.name): point.load()
        for point in distribution("dept").entry_points
        if point.group.startswith("llmfoundry_")
    }
    assert ("algorithms", "dept") in ours and ("config_transforms", "dept") in ours
    for (kind, name), value in ours.items():
        assert getattr(registry, kind).get(name) is value
        assert catalogue.REGISTRY.get(("llmfoundry", kind, name), value) is value


def test_a_yaml_without_dept_is_left_as_it_is(unprepared):
    config = {"model": {"name": "hf_causal_lm"}, "train_loader": {"name": "text"}}
    for given in (config, config | {"algorithms": {"gradient_clipping": {}}}, {}):
        before = json.dumps(given)
        assert transform(given) is given and json.dumps(given) == before
    assert SAVER not in catalogue.REGISTRY


def test_a_yaml_of_dept_is_checked_and_may_name_what_others_register(
    unprepared, prepared, tmp_path
):
    registry.callbacks.register("of_another_package", func=Callback)
    config = own_yaml(prepared, tmp_path) | {"callbacks": {"of_another_package": {}}}
    with pytest.raises(ConfigError, match="max_duration is '9ba': give DEPT a whole number"):
        transform(config | {"max_duration": "9ba"})
    assert SAVER not in catalogue.REGISTRY
    completed = apply_transforms_to_config(config, "all")
    assert completed["scheduler"]["name"] == "sequential_steps"
    assert {"of_another_package", "checkpoints"} <= completed["callbacks"].keys()
    assert SAVER in catalogue.REGISTRY


@pytest.mark.end_to_end
def test_llm_foundrys_own_command_trains_as_train_py_does(prepared, tmp_path):
    def losses(folder):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        kinds = ("loss/", "dept/", "metrics/eval/")
        return [
            {k: v for k, v in line.items() if k.startswith(kinds) and "time" not in k}
            for line in lines
        ]

    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
        text = yaml.safe_dump(own_yaml(prepared, tmp_path / name))
        (tmp_path / f"{name}.yaml").write_text(text)

    def run(name, *arguments):
        command = [Path(sys.executable).with_name(name), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "printed.yaml").write_text(run("dept-train", "--print", "theirs.yaml"))
    run("llmfoundry", "train", "printed.yaml")
    run("dept-train", "ours.yaml")
    theirs = losses(tmp_path / "theirs")
    assert theirs == losses(tmp_path / "ours") and any("dept/update_norm" in n for n in theirs)
    checkpoints = [
        sorted(p.name for p in (tmp_path / name / "checkpoints").rglob("*.pt"))
        for name in ("theirs", "ours")
    ]
    assert checkpoints[0] == checkpoints[1] and "latest-rank0.pt" in checkpoints[0]
