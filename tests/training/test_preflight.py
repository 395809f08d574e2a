"""`train.py --check`: what it finds of yaml, data, workers, memory and the folder of the run."""

import json
import shutil
import sys

import pytest
from experiments import NAMES, YAMLS, stand_ins
from omegaconf import OmegaConf
from training import MPT, overrides

from dept.checkpoint import run_folder
from dept.config import complete as configs
from dept.config import extends
from dept.costs import machine
from dept.costs.experiment import costs_of
from dept.training import arguments
from dept.training.on_machine import choose


@pytest.fixture
def checked(prepared, tmp_path, capsys, monkeypatch):
    """Runs the command; its exit status and what it prints, unwrapped."""
    for heavy in ("llmfoundry", "composer", "streaming"):
        monkeypatch.setitem(sys.modules, heavy, None)
    monkeypatch.setenv("COLUMNS", "10000")
    for variable in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(variable, "1")  # set back afterwards, whatever --workers sets

    def run(name, *more, root=prepared):
        path = str(YAMLS / f"{name}.yaml")
        small = [*overrides(root), "run_name=checked"] if root else []  # no other test's run
        given = [*stand_ins(name, tmp_path), *small, *more]
        status = arguments.main(["--check", path, *given])
        return status, " ".join(capsys.readouterr().out.replace("│", " ").split())

    return run


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_looked_at(checked, name):
    more = ["precision=fp32"]
    if "llama" not in name:
        more += [*MPT, "model.attn_config.attn_impl=torch"]
    status, said = checked(name, *more)
    assert status == 0 and said.endswith("can start"), said
    for found in ("yaml", "data", "tokenizer", "workers", "machine", "memory", "run folder"):
        assert f" {found} " in said
    assert "is new" in said


def test_the_papers_experiments_say_what_is_missing_here(checked, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    for name in (name for name in NAMES if name.startswith(("pile/", "mc4/"))):
        status, said = checked(name, "precision=amp_bf16", root=None)
        assert status == 2 and "cannot start: see data, machine" in said
        assert "corpus.json does not exist: make it with `make data CORPUS=" in said
        assert "precision is amp_bf16 and there is no GPU: set it to fp32" in said
        assert "about" in said and "of memory" in said


def test_workers_that_cannot_share_the_sources_are_told_which_could(checked):
    assert (
        "2, 2 of 4 sources a round each; 1, 2, 4 would do" in checked("dept_spec", "--workers=2")[1]
    )
    status, said = checked("dept_spec", "--workers", "3")
    assert status == 2 and "start 1, 2 or 4 workers" in said


def test_what_draws_ask_of_workers_is_said(checked):
    half = "algorithms.dept.sources_per_round=2"
    status, said = checked("dept_spec", half, "--workers=2")
    assert status == 0 and "1, 2 would do; all must see checkpoints/sources of the run" in said
    unsaved = [half, "save_folder=null", "autoresume=false"]
    status, said = checked("dept_spec", *unsaved, "--workers=2")
    assert status == 2 and "set save_folder to a folder that all machines share, or" in said
    three = [f"algorithms.dept.{key}" for key in ("sources_per_round=3", "sampling=stratified")]
    status, said = checked("dept_spec", *three, "--workers=3")
    assert status == 0 and "in a round is 1 for manual, code; 1/2 for mail, tools" in said


def test_damage_is_found(checked, prepared, tmp_path):
    broken = tmp_path / "root"
    shutil.copytree(prepared, broken, ignore=shutil.ignore_patterns("runs"))
    shard = next((broken / "data/tiny/code/global/train").rglob("*.mds"))
    shard.write_bytes(shard.read_bytes()[:-1])
    status, said = checked("dept_glob", root=broken)
    assert status == 2 and f"{shard} has " in said and "bytes, but" in said
    assert f"remove {shard.parent} and prepare the corpus again" in said and "see data" in said
    (broken / "tokenizers/tiny/global/tokenizer.json").write_text("{}")
    status, said = checked("dept_glob", root=broken)
    assert status == 2 and "is not the tokenizer that" in said and " memory " in said


def test_a_model_that_does_not_fit_is_refused(checked, prepared, monkeypatch):
    huge = ["model.d_model=65536", "model.n_heads=64", "model.n_layers=96"]
    status, said = checked("dept_spec", *huge)
    assert status == 2 and "make the model smaller" in said and "see machine, memory" in said
    small = [*overrides(prepared), "max_seq_len=128"]
    config = extends.resolve(extends.load(YAMLS / "dept_spec.yaml", small))
    choose(config)
    found = machine.estimate(config, slots=4, sources=8, workers_here=2)
    costs = costs_of(config, slots=4)
    assert found.training == costs.memory.training and found.dept == costs.memory.dept
    assert found.kept == 8 * costs.memory.kept_per_source + costs.memory.finished > 0
    tokens, width, layers, heads = 4 * 128, 128, 4, 4
    kept = tokens * layers * (17 * width + 2.5 * heads * 128) * 4
    assert found.activations == round(kept + tokens * costs.vocabulary.held * 16)


def test_what_an_earlier_run_left_is_told_and_stays_as_it_was(checked, prepared):
    name, small = "looked-at", ["run_name=looked-at", "precision=fp32", *MPT]
    folder = prepared / "runs" / name
    config = extends.load(YAMLS / "dept_glob.yaml", [*overrides(prepared), *small])
    config = OmegaConf.to_container(config, resolve=True)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(configs.complete(config)))
    for batch in (8, 9):
        (folder / f"checkpoints/ep2-ba{batch}-rank0.pt").write_bytes(b"torn")
    status, said = checked("dept_glob", *small)
    assert status == 0 and "2 checkpoints are torn" in said
    assert len(list((folder / "checkpoints").iterdir())) == 2  # none is set aside
    status, said = checked("dept_glob", *small, "seed=3")
    assert status == 2 and "seed = 17, the yaml says 3" in said
    with run_folder.hold(folder):
        status, said = checked("dept_glob", *small)
    assert status == 2 and "is in use by process" in said
    (folder / "summary.json").write_text(json.dumps({"rounds": 3}))
    assert "is finished" in checked("dept_glob", *small)[1]
    shutil.rmtree(folder)
