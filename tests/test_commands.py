"""Commands as a user types them, in processes that really die."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training import DEPT, MPT, REPOSITORY, overrides

pytestmark = pytest.mark.end_to_end

COMPOSER = Path(sys.executable).parent / "composer"


def arguments(root, name):
    # Checkpoints in mid-round, and after each round
    more = ["save_interval=2ba", "algorithms.dept.outer_optimizer.name=nesterov"]
    return [
        "train.py",
        str(REPOSITORY / "yamls" / "dept_spec.yaml"),
        *overrides(root),
        *MPT,
        *DEPT,
        *more,
        f"run_name={name}",
    ]


def start(root, name, *launcher):
    """Starts a run as it would be from the root of the repository, its files below ``root``."""
    for entry in ("train.py", "dept", "callbacks", "yamls"):
        if not (root / entry).exists():
            (root / entry).symlink_to(REPOSITORY / entry)
    return subprocess.Popen(
        [*launcher, *arguments(root, name)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def lines_of(root, name):
    path = root / "runs" / name / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def summary_of(root, name):
    summary = json.loads((root / "runs" / name / "summary.json").read_text())
    return {k: v for k, v in summary.items() if k not in ("timing", "peak_memory_bytes")}


def test_a_killed_run_goes_on_with_the_same_command_to_the_same_numbers(prepared):
    unbroken = start(prepared, "unbroken", str(COMPOSER))
    killed = start(prepared, "killed", sys.executable)
    while killed.poll() is None and len(lines_of(prepared, "killed")) < 14:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (prepared / "runs" / "killed" / "summary.json").exists()
    kept = sorted((prepared / "runs" / "killed" / "checkpoints").glob("ep*.pt"))
    assert kept, "the run was killed before its first checkpoint"

    resumed = start(prepared, "killed", sys.executable)
    output, _ = resumed.communicate()
    assert resumed.returncode == 0, output
    assert "bits per byte" in output
    output, _ = unbroken.communicate()
    assert unbroken.returncode == 0, output

    assert summary_of(prepared, "killed") == summary_of(prepared, "unbroken")
    assert lines_of(prepared, "killed") == lines_of(prepared, "unbroken")

    again = start(prepared, "killed", sys.executable)
    output, _ = again.communicate()
    assert again.returncode == 0 and "is finished" in output and "bits per byte" in output
