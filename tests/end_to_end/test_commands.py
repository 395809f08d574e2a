"""Commands as a user types them, in processes that really die."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import TRAIN, Commands
from fleet import free_port
from training import DEPT, MPT, REPOSITORY, overrides

pytestmark = pytest.mark.end_to_end

COMPOSER = Path(sys.executable).parent / "composer"


def arguments(root, name, *more):
    # Checkpoints in mid-round, and after each round
    more = ["save_interval=2ba", "algorithms.dept.outer_optimizer.name=nesterov", *more]
    return [
        "train.py",
        str(REPOSITORY / "yamls" / "dept_spec.yaml"),
        *overrides(root),
        *MPT,
        *DEPT,
        *more,
        f"run_name={name}",
    ]


def start(root, name, *launcher, more=()):
    """Starts a run as it would be from the root of the repository, its files below ``root``."""
    for entry in ("train.py", "yamls"):
        if not (root / entry).exists():
            (root / entry).symlink_to(REPOSITORY / entry)
    return subprocess.Popen(
        [*launcher, *arguments(root, name, *more)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def lines_of(root, name):
    path = root / "runs" / name / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def summary_of(root, name):
    summary = json.loads((root / "runs" / name / "summary.json").read_text())
    outside = ("timing", "peak_memory_bytes", "workers", "communication")
    return {k: v for k, v in summary.items() if k not in outside}


def left_alone(root, name, *more):
    """A run that nothing happens to, forked: what processes that import everything must come to."""
    Commands(root).run(name, TRAIN, arguments(root, name, *more)[1:])


def test_a_killed_run_goes_on_with_the_same_command_to_the_same_numbers(prepared):
    killed = start(prepared, "killed", str(COMPOSER))
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
    assert "unigram CE" in output
    left_alone(prepared, "unbroken")
    assert summary_of(prepared, "killed") == summary_of(prepared, "unbroken")
    assert lines_of(prepared, "killed") == lines_of(prepared, "unbroken")

    again = start(prepared, "killed", sys.executable)
    output, _ = again.communicate()
    assert again.returncode == 0 and "is finished" in output and "unigram CE" in output


# Long enough to be killed in mid-round; a process looks for its launcher once a second
LONG = ["algorithms.dept.local_steps=120", "save_interval=20ba", "max_duration=2ep"]


def ranks_of(launcher):
    """The processes that a launcher has started, by rank."""
    return psutil.Process(launcher.pid).children()


def kill_in_mid_round(root, name, launcher, victim, after):
    """Kills ``victim()`` once ``after`` more lines of metrics are there."""
    lines = len(lines_of(root, name)) + after
    while len(lines_of(root, name)) < lines:
        assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.01)
    os.kill(victim().pid, signal.SIGKILL)


def test_workers_that_die_in_mid_round_end_the_job_which_goes_on_to_the_same_numbers(prepared):
    # One of four workers on this machine
    job = start(prepared, "two", str(COMPOSER), "-n", "4", more=LONG)
    kill_in_mid_round(prepared, "two", job, lambda: ranks_of(job)[1], after=40)
    output, _ = job.communicate(timeout=600)
    assert job.returncode != 0
    assert "Rank 1 crashed with exit code -9" in output
    assert "the same command resumes from the last checkpoint" in output
    assert_nothing_left(prepared)

    # One of two workers on two "machines", whose launcher is killed: its rank ends with it
    first, second = start_two_machines(prepared, "two")
    kill_in_mid_round(prepared, "two", first, lambda: second, after=30)
    second.communicate(timeout=600)
    output, _ = first.communicate(timeout=600)
    assert first.returncode != 0
    assert "the same command resumes from the last checkpoint" in output
    assert_nothing_left(prepared)

    # Two machines to the end
    first, second = start_two_machines(prepared, "two")
    outputs = [machine.communicate()[0] for machine in (first, second)]
    assert first.returncode == second.returncode == 0, outputs
    assert "unigram CE" in outputs[0] and "unigram CE" not in outputs[1]
    assert "round 2/2" in outputs[0] and "round 2/2" not in outputs[1]
    left_alone(prepared, "alone", *LONG)
    assert summary_of(prepared, "two") == summary_of(prepared, "alone")
    folder = prepared / "runs" / "two" / "checkpoints"
    assert not list(folder.rglob(".*")), "beginnings of files are left"


def start_two_machines(root, name):
    """Two launchers of one process each that meet on loopback."""
    address = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    size = ["-n", "1", "--world_size", "2"]
    return [
        start(
            root,
            name,
            str(COMPOSER),
            *size,
            "--node_rank",
            str(n),
            "--base_rank",
            str(n),
            *address,
            more=LONG,
        )
        for n in range(2)
    ]


def assert_nothing_left(root):
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert str(root) not in " ".join(process.cmdline()), process
