"""Parts of bench/gpu.py that do not need a run."""

import json
import time
from pathlib import Path

import gpu
import gpu_record
import pytest

REPOSITORY = Path(__file__).parents[1]


def test_a_command_over_its_limit_is_stopped_and_others_keep_their_status(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "REPOSITORY", tmp_path)
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)")
    (tmp_path / "fails.py").write_text("import os, sys\nprint(os.environ['RANK'])\nsys.exit(3)")
    slow, fails = (gpu.Job(name, f"{name}.py") for name in ("slow", "fails"))
    first = gpu.launched(slow, {}, tmp_path / "slow.log")
    second = gpu.launched(fails, {"RANK": "5"}, tmp_path / "fails.log")
    assert second.wait_until(time.monotonic() + 300) == 3
    assert (tmp_path / "fails.log").read_text() == "5\n"
    assert first.wait_until(time.monotonic()) == "over its time limit"
    assert first.process.returncode == -9


def test_what_has_no_time_left_is_recorded(tmp_path, monkeypatch):
    for name in ("WORK", "FACTS", "KERNELS"):
        monkeypatch.setattr(gpu, name, tmp_path / name)
    bench = gpu.Bench(tmp_path, "gpu", began=time.monotonic() - gpu.SECONDS + 10)
    bench.step(gpu.Step("late", 60, (gpu.Job("a", "train.py"), gpu.Job("b", "train.py"))))
    record = json.loads((tmp_path / "gpu-unknown.json").read_text())
    assert {name: end["status"] for name, end in record["commands"].items()} == dict.fromkeys(
        "ab", "no time left"
    )


def test_every_command_names_a_file_of_this_repository():
    steps = gpu.steps_of(gpu.Size())
    jobs = [job for step in steps for job in step.jobs]
    assert len({job.name for job in jobs}) == len(jobs) == 16
    for job in jobs:
        assert (REPOSITORY / job.script).is_file()
        for argument in job.arguments:
            assert not argument.startswith("yamls/") or (REPOSITORY / argument).is_file()


def test_flops_are_those_of_every_multiplication():
    model = {"name": "mpt_causal_lm", "d_model": 8, "n_layers": 3, "vocab_size": 50}
    projections = 3 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8) + 8 * 50  # qkv, out, up, down; the head
    scores = 3 * 2 * 8 * 16  # each query with each key, each weight with each value
    assert gpu_record.flops_per_token(model, 16) == 3 * 2 * (projections + scores)
    assert gpu_record.flops_per_token({"name": "hf_causal_lm"}, 16) is None


@pytest.mark.parametrize(
    ("card", "mfu"), [("NVIDIA H100 80GB HBM3", 0.5), ("NVIDIA H100 PCIe", 989 / 1512), ("x", None)]
)
def test_utilisation_is_of_the_peak_of_the_card(card, mfu):
    run = {"tokens_per_second_of_median_step": 1000.0, "flops_per_token": 989e12 / 2000}
    assert gpu_record.with_utilisation({"a": run}, card)["a"]["mfu"] == pytest.approx(mfu)
