"""A baseline whose loss is NaN: it has no source that could be left out."""

import json

import pytest
from training import REPOSITORY, overrides

from dept.training import arguments

pytestmark = pytest.mark.end_to_end


def test_a_baseline_stops_at_a_loss_that_is_nan(prepared, capfd, monkeypatch, registries):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("TMPDIR", str(prepared))
    poison = "callbacks.poison={what: loss, by: nan, round: 1, step: 1}"
    path = str(REPOSITORY / "yamls" / "std.yaml")
    small = ["model.d_model=32", "model.n_heads=2", "model.n_layers=1", "run_name=std-nan"]
    small += ["global_train_batch_size=4", "variables.local_steps=3"]
    small += ["code_paths=[tests/helpers/poison.py]"]
    assert arguments.main([path, *overrides(prepared), *small, poison]) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(path) and "the loss is NaN, and the run stops" in said, said
    lines = (prepared / "runs" / "std-nan" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["batch"] for line in lines) < 6
