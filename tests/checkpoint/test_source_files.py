"""Files of sources: which one fits a checkpoint, and which are still needed."""

import os
import subprocess

import pytest
import torch

from dept.checkpoint.source_files import SourceFiles


@pytest.fixture
def files(tmp_path):
    return SourceFiles(tmp_path / "sources")


def write(files, *states, source="en"):
    for r, s in states:
        files.write(source, r, s, {"at": (r, s), "value": torch.full((2,), r + s / 100)})


def test_a_state_comes_back_as_it_was(files):
    write(files, (3, 7))
    assert files.read("en", 3)["at"] == (3, 7)
    assert torch.equal(files.read("en", 3)["value"], torch.full((2,), 3.07))
    assert files.read("it", 3) is None


def test_the_newest_state_that_is_not_after_the_checkpoint_is_taken(files):
    write(files, (1, 0), (3, 0), (3, 5), (3, 20), (4, 0))
    taken = {r: files.read("en", r) for r in range(5)}
    assert taken[0] is None
    assert [taken[r]["at"] for r in (1, 2, 3, 4)] == [(1, 0), (1, 0), (3, 20), (4, 0)]
    assert [files.read("en", 3, step)["at"] for step in (4, 5, 19)] == [(3, 0), (3, 5), (3, 5)]


def test_states_that_a_kept_checkpoint_may_need_stay(files):
    write(files, (1, 0), (2, 0), (4, 0), (4, 2), (4, 4), (4, 6), (4, 8))
    files.prune("en", oldest_round=3, steps_to_keep=2)
    assert files.states("en") == [(2, 0), (4, 0), (4, 6), (4, 8)]
    files.prune("en", oldest_round=4, steps_to_keep=2)
    assert files.states("en") == [(4, 0), (4, 6), (4, 8)]
    files.prune("en", oldest_round=9, steps_to_keep=1)
    assert files.states("en") == [(4, 0)]  # what a later checkpoint reads, see below


def test_a_state_within_a_round_is_of_no_use_to_a_checkpoint_of_a_later_one(files):
    """A job that was to train other sources has left it: its round was never ended like that."""
    write(files, (1, 0), (2, 3))
    assert [files.read("en", r)["at"] for r in (1, 2, 3)] == [(1, 0), (2, 3), (1, 0)]


def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_a_kill_left_of_a_file_is_swept_away_and_never_read(files):
    write(files, (1, 0))
    torn = files.folder / "en" / f".writing-{gone()}-round2-step0.pt"
    running = torn.with_name(f".writing-{os.getpid()}-round2-step0.pt")
    for path in (torn, running):
        path.write_bytes(b"PK")
    (files.folder / "en" / "notes.txt").write_text("mine")
    write(files, (1, 0), source="it")
    other = files.folder / "it" / torn.name
    other.write_bytes(b"PK")
    assert files.states("en") == [(1, 0)]
    files.sweep(["en"])
    assert not torn.exists() and running.exists() and other.exists()
    assert (files.folder / "en" / "notes.txt").exists()


def flip_a_bit(path, value):
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((2,), value).numpy().tobytes())] ^= 1
    path.write_bytes(data)


def test_an_altered_state_is_found_by_its_checksum_and_an_earlier_one_of_the_round_will_do(files):
    write(files, (1, 0), (2, 0), (2, 3), (2, 6))
    write(files, (2, 0), source="it")
    assert files.torn(2) == ([], True)
    newest, before = (files.folder / "en" / f"round2-step{step}.pt" for step in (6, 3))
    flip_a_bit(newest, 2.06)
    with pytest.raises(ValueError, match=r"en/round2-step6.pt is cut short or was altered"):
        files.read("en", 2)
    os.truncate(before, 100)
    assert files.torn(2) == ([newest, before], True)
    flip_a_bit(files.folder / "en" / "round2-step0.pt", 2.0)
    torn, is_enough = files.torn(2)
    assert len(torn) == 3 and not is_enough  # round 1 is not where the others are
    assert files.torn(1) == ([], True)


def test_a_state_cannot_run_code(files):
    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(files.folder / "owned"),))

    files.write("en", 1, 0, {"private": Hostile()})
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        files.read("en", 1)
    assert not (files.folder / "owned").exists()
