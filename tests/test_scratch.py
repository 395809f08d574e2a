"""What a killed job leaves in the temporary folder and in shared memory."""

import mmap
import os
import subprocess
import tempfile

import pytest

from dept import scratch


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
