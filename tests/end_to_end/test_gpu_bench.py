"""bench/gpu.sh at a tiny size on a CPU: every command that it runs on a GPU."""

import json
import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.end_to_end


def test_every_step_runs_and_is_recorded(tmp_path):
    environment = {**os.environ, "DEVICE": "cpu", "OUT": str(tmp_path)}
    done = subprocess.run(
        ["bash", "bench/gpu.sh"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    log = tmp_path / "gpu-cpu.log"
    assert done.returncode == 0, (
        done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    )
    record = json.loads((tmp_path / "gpu-cpu.json").read_text())
    runs = record["runs"]
    assert len(record["commands"]) == 16 and len(runs) == 14 and record["card"] == "cpu"
    assert record["two_workers_differ_by"] == 0.0
    assert runs["resume"]["rounds"] == 2 and runs["resume"]["steps"] == 16
    assert {runs[name]["steps"] for name in ("glob", "std", "spec_opt", "glob_compiled")} == {16}
    assert runs["glob_compiled"]["loss"] == pytest.approx(runs["glob"]["loss"], rel=1e-4)
    for run in runs.values():
        assert run["tokens_per_second"] > 0 and run["peak_memory_bytes"] > 0
    for name in ("glob", "spec_opt", "pile_round"):
        assert runs[name]["swap_ms_per_slot"] > 0 and runs[name]["outer_step_ms"] > 0
        assert runs[name]["median_step_ms"] > 0
    errors = {(row["kernel"], row["alibi"]): row["relative_error"] for row in record["attention"]}
    assert set(errors) == {(kernel, a) for kernel in ("torch", "fused") for a in (True, False)}
    assert max(errors.values()) < 0.02
