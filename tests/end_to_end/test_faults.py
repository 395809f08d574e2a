"""Checkpoints when a disk is full, when a scheduler says to end, and when processes are killed."""

import json
import os
import resource
import signal

import kills
import pytest
import torch
from forks import forks
from training import LOCAL_STEPS, REPOSITORY, parameters, tensors_of, train

from dept.checkpoint.run_folder import numbered_checkpoints, recover
from dept.checkpoint.saver import Checkpoints
from dept.checkpoint.source_files import SourceFiles
from dept.errors import NotSaved

pytestmark = pytest.mark.end_to_end

PER_ROUND = 4 * LOCAL_STEPS  # batches, of four sources


def saved(root, name):
    return [(e, b) for e, b, _ in numbered_checkpoints(root / "runs" / name / "checkpoints")]


@pytest.fixture(scope="module")
def unbroken(prepared):
    return tensors_of(train(prepared, "dept_spec", "run_name=in-peace"))


def assert_goes_on(prepared, name, unbroken, *options):
    """What train.py does before it trains, and training: to the end of an unbroken run."""
    recover(prepared / "runs" / name / "checkpoints")
    found = tensors_of(train(prepared, "dept_spec", f"run_name={name}", *options))
    assert found.keys() == unbroken.keys()
    assert all(torch.equal(found[key], value) for key, value in unbroken.items())


@pytest.fixture
def small_disk(monkeypatch):
    """Lets a method write no file larger than 100 kB on the calls that are named."""

    def limit(cls, method, *calls):
        write, count = getattr(cls, method), iter(range(1000))

        def limited(*args, **options):
            if next(count) not in calls:
                return write(*args, **options)
            _, most = before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
            try:
                return write(*args, **options)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        monkeypatch.setattr(cls, method, limited)

    return limit


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(prepared, unbroken, small_disk, capfd):
    small_disk(Checkpoints, "_save_checkpoint", 1)
    found = tensors_of(train(prepared, "dept_glob", "run_name=full"))
    assert saved(prepared, "full") == [(1, PER_ROUND), (3, 3 * PER_ROUND)]
    said = capfd.readouterr().err
    assert "ep2-ba24-rank0.pt could not be written" in said and "training continues" in said
    folder = prepared / "runs" / "full" / "checkpoints"
    assert not list(folder.rglob(".writing-*"))
    assert all(torch.isfinite(value).all() for value in found.values())


def test_a_source_that_cannot_be_written_means_no_checkpoint_that_would_need_it(
    prepared, unbroken, small_disk, capfd
):
    small_disk(SourceFiles, "write", 5)  # in the second round, after one source of four
    train(prepared, "dept_spec", "run_name=full-source")
    assert saved(prepared, "full-source") == [(1, PER_ROUND), (3, 3 * PER_ROUND)]
    assert "could not be written" in capfd.readouterr().err
    newest = prepared / "runs" / "full-source" / "checkpoints" / "ep3-ba36-rank0.pt"
    newest.unlink()
    (prepared / "runs" / "full-source" / "summary.json").unlink()
    assert_goes_on(prepared, "full-source", unbroken)


def test_the_end_of_a_run_must_be_written(prepared, unbroken, small_disk, monkeypatch):
    small_disk(SourceFiles, "write", *range(8, 20))
    with pytest.raises(NotSaved, match="make room on that disk"):
        train(prepared, "dept_spec", "run_name=full-end")
    assert not (prepared / "runs" / "full-end" / "summary.json").exists()
    assert saved(prepared, "full-end") == [(1, PER_ROUND), (2, 2 * PER_ROUND)]
    monkeypatch.undo()
    assert_goes_on(prepared, "full-end", unbroken)


def test_sigterm_saves_first_and_old_checkpoints_are_counted_after_it(
    prepared, unbroken, monkeypatch
):
    from dept.checkpoint.sigterm import StopOnSigterm

    before = signal.getsignal(signal.SIGTERM)
    name = "terminated"
    for batch in (PER_ROUND + 5, 2 * PER_ROUND + 1):

        def terminate(self, state, logger, at=batch):
            if state.timestamp.batch == at:
                for _ in range(2):  # a launcher sends another one when the first process ends
                    os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(StopOnSigterm, "batch_end", terminate)
        recover(prepared / "runs" / name / "checkpoints")
        with pytest.raises(SystemExit) as stop:
            train(prepared, "dept_spec", f"run_name={name}")
        assert stop.value.code == 128 + signal.SIGTERM
        assert saved(prepared, name)[-1] == (batch // PER_ROUND, batch)
        assert signal.getsignal(signal.SIGTERM) == before
    monkeypatch.undo()
    assert_goes_on(prepared, name, unbroken)
    assert len(saved(prepared, name)) == 2
    states = SourceFiles(prepared / "runs" / name / "checkpoints" / "sources").states("code")
    assert len(states) <= 4


def test_files_of_sources_that_are_newer_than_the_checkpoint_change_nothing(prepared, unbroken):
    """They are written before it; a process that dies in between must not skip their batches."""
    every = ["save_interval=1ba", "save_num_checkpoints_to_keep=-1"]
    assert_goes_on(prepared, "newer", unbroken, *every)
    folder = prepared / "runs" / "newer"
    lines = (folder / "metrics.jsonl").read_text()
    slot_ends, round_ends = PER_ROUND + LOCAL_STEPS, 2 * PER_ROUND
    for at in (slot_ends, round_ends):
        for _, batch, path in numbered_checkpoints(folder / "checkpoints"):
            if batch > at:
                path.unlink()
        (folder / "summary.json").unlink()
        assert_goes_on(prepared, "newer", unbroken, *every)
        assert (folder / "metrics.jsonl").read_text() == lines


def test_a_baseline_saves_before_it_ends_too(prepared, monkeypatch):
    from dept.checkpoint.sigterm import StopOnSigterm

    small = ["variables.mixture_batch=8", "variables.local_steps=3"]
    expected = parameters(train(prepared, "std", "run_name=std-whole", *small).state.model)

    def terminate(self, state, logger):
        if state.timestamp.batch == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StopOnSigterm, "batch_end", terminate)
    with pytest.raises(SystemExit):
        train(prepared, "std", "run_name=std-terminated", *small)
    assert saved(prepared, "std-terminated")[-1] == (1, 5)
    monkeypatch.undo()
    recover(prepared / "runs" / "std-terminated" / "checkpoints")
    resumed = train(prepared, "std", "run_name=std-terminated", *small).state.model
    assert all(torch.equal(p, expected[n]) for n, p in parameters(resumed).items())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_again_and_again_learns_the_same_bits(prepared, monkeypatch, workers):
    for entry in ("train.py", "yamls"):
        if not (prepared / entry).exists():
            (prepared / entry).symlink_to(REPOSITORY / entry)
    forks()  # the same server for all files
    monkeypatch.chdir(prepared)
    options = [*kills.SMALL, "variables.corpus=tiny", "max_seq_len=32", "variables.local_steps=12"]
    fire = kills.Fire(kills=8, seed=workers)
    outcome = kills.compare("yamls/dept_spec.yaml", options, workers, fire)
    assert (outcome.failure, outcome.differences) == (None, [])
    assert outcome.survived == dict.fromkeys(kills.DEATHS, 2)
    assert max(outcome.lost["SIGTERM to all"]) == 0
    assert max(max(lost) for lost in outcome.lost.values()) <= 2


def test_a_run_killed_after_its_last_checkpoint_comes_to_its_end(prepared, unbroken):
    folder = prepared / "runs" / "in-peace"
    files = [folder / "summary.json", folder / "metrics.jsonl"]
    summary, metrics = [path.read_text() for path in files]
    files[0].unlink()
    files[1].write_text(metrics[: metrics.rindex("\n", 0, -1) + 20])  # torn, too
    assert_goes_on(prepared, "in-peace", unbroken)
    ended = json.loads(files[0].read_text())
    assert {k: ended[k] for k in ("sources", "average", "tokens")} == {
        k: json.loads(summary)[k] for k in ("sources", "average", "tokens")
    }
    assert list(map(json.loads, files[1].read_text().splitlines())) == list(
        map(json.loads, metrics.splitlines())
    )
