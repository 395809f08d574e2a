"""What a killed job leaves: temporary files, shared memory, and processes."""

import mmap
import os
import subprocess
import sys
import tempfile

import pytest
from training import REPOSITORY

from dept.training import scratch


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(scratch.atexit, "register", lambda *a, **k: None)
    return tmp_path


def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_job_has_a_folder_of_its_own_and_removes_those_of_jobs_that_are_gone(base):
    (base / f"dept-{gone()}").symlink_to("nowhere")  # as one that another job removes meanwhile
    left, running = base / f"dept-{gone()}", base / f"dept-{os.getppid()}"
    for folder in (left, running, base / "dept-notes"):
        folder.mkdir()
        (folder / "file").touch()
    folder = scratch.enter()
    assert folder == base / f"dept-{os.getpid()}" == type(base)(tempfile.gettempdir())
    assert not left.exists()
    assert (running / "file").exists() and (base / "dept-notes/file").exists()


def test_processes_of_a_launcher_share_it(base, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert scratch.enter() == base / f"dept-{os.getppid()}"


def test_shared_memory_goes_with_its_locks_unless_a_process_has_it(tmp_path):
    folder, memory = tmp_path / "job", tmp_path / "shm"
    folder.mkdir()
    memory.mkdir()
    for number in ("000003", "000004", "000005"):
        (memory / f"{number}_locals").write_bytes(b"x" * 4096)
    for number in ("000003", "000004"):
        (folder / f"{number}_barrier_filelock").touch()
    with open(memory / "000004_locals", "r+b") as file, mmap.mmap(file.fileno(), 0):
        scratch._remove_segments(folder, memory)
        assert sorted(p.name for p in memory.iterdir()) == ["000004_locals", "000005_locals"]


def test_a_process_ends_with_its_launcher():
    """In order if it can, and where it stands if not."""
    for handler, grace, code in (
        ("lambda *_: sys.exit(7)", 600, b"in order"),
        ("signal.SIG_IGN", 0.1, b""),
    ):
        child = (
            "import atexit, os, signal, sys, time; "
            "from dept.transport.launcher import end_with_launcher; "
            f"signal.signal(signal.SIGTERM, {handler}); "
            "atexit.register(lambda: print('in order', end='', flush=True)); "
            f"os.environ['LOCAL_RANK'] = '0'; end_with_launcher(poll=0.01, grace={grace}); "
            "print('ready', flush=True); time.sleep(60)"
        )
        launcher = (
            "import subprocess, sys, time; "
            f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", launcher], stdout=subprocess.PIPE, cwd=REPOSITORY
        )
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        assert process.stdout.read() == code  # until the child has closed it too
        process.wait()
