"""Checkpoints in a bucket: what is there when, and a run that goes on on another machine."""

import os
import shutil
import signal

import pytest
import torch
from flaky_proxy import FlakyProxy
from omegaconf import OmegaConf
from s3 import BUCKET, S3Server
from training import LOCAL_STEPS, load, tensors_of, train

from dept.checkpoint import remote_folder
from dept.checkpoint.run_folder import folder_of, numbered_checkpoints
from dept.checkpoint.saver import Checkpoints
from dept.checkpoint.sigterm import StopOnSigterm
from dept.errors import ConfigError, NotSaved
from dept.training import command

pytestmark = pytest.mark.end_to_end

PER_ROUND = 4 * LOCAL_STEPS
SOURCES = {"manual", "code", "mail", "tools"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with S3Server() as server:
        server.upload(tmp_path_factory.mktemp("empty"), "")
        yield server


@pytest.fixture
def link(server, monkeypatch):
    """To the server: every connection is slow, and of six one is cut."""
    monkeypatch.setattr(remote_folder, "PAUSE", 0.01)
    port = int(server.environment["S3_ENDPOINT_URL"].rpartition(":")[2])
    with FlakyProxy(port, cut_each=6, delay=0.002) as link:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{link.port}")
        server.requests.clear()
        yield link
        link.is_down.clear()


@pytest.fixture(scope="module")
def unbroken(prepared):
    return tensors_of(train(prepared, "dept_spec", "run_name=never-remote"))


class Run:
    """A run whose checkpoints are in the bucket, by a name of its own."""

    def __init__(self, root, name, *options):
        self.root, self.name = root, name
        self.options = [f"run_name={name}", f"save_folder=s3://{BUCKET}/runs/{name}", *options]
        self.folder = root / "runs" / name

    def goes_on(self, experiment="dept_spec"):
        """What train.py does: looks into what is left, and trains."""
        plain = OmegaConf.to_container(load(self.root, experiment, *self.options), resolve=True)
        assert command.look_into(folder_of(plain), plain, True) is None
        return train(self.root, experiment, *self.options)

    def ends_at(self, monkeypatch, batch):
        """SIGTERM after a batch."""

        def terminate(_, state, logger):
            if state.timestamp.batch == batch:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(StopOnSigterm, "batch_end", terminate)
            self.goes_on()

    def moves(self):
        """To a machine where nothing of it is."""
        shutil.rmtree(self.folder)

    def stored(self, server):
        """Names of what is in the bucket."""
        objects = server.client.list_objects_v2(Bucket=BUCKET, Prefix=f"runs/{self.name}/")
        names = (entry["Key"] for entry in objects.get("Contents", ()))
        return {name.removeprefix(f"runs/{self.name}/") for name in names}

    def alter(self, server, name):
        """Cut an object short."""
        key = f"runs/{self.name}/{name}"
        whole = server.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        server.client.put_object(Bucket=BUCKET, Key=key, Body=whole[: len(whole) // 2])


def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], value) for name, value in expected.items()
    )


def checkpoints(names):
    return sorted(name for name in names if name.startswith("ep"))


def test_a_run_goes_on_on_another_machine_to_the_same_numbers(
    prepared, unbroken, server, link, monkeypatch, capfd
):
    run = Run(prepared, "moved")
    for batch in (PER_ROUND + 5, 2 * PER_ROUND + 1):
        run.ends_at(monkeypatch, batch)
        run.moves()
    assert same(tensors_of(run.goes_on()), unbroken)
    assert "runs/moved/ep1-ba17-rank0.pt was fetched" in capfd.readouterr().err
    stored = run.stored(server)
    assert checkpoints(stored) == ["ep2-ba25-rank0.pt", "ep3-ba36-rank0.pt"]  # the last two
    assert {n.split("/")[1] for n in stored if n.startswith("sources/")} == SOURCES
    assert len([name for name in stored if "/code/" in name]) <= 4
    assert link.cut > 0
    run.moves()  # and what a finished run has learned is there
    assert same(tensors_of(run.goes_on()), unbroken)


def test_nothing_is_there_before_what_it_refers_to(prepared, unbroken, server, link):
    Run(prepared, "ordered").goes_on()
    there = set()
    for method, key in server.requests:
        name = key.removeprefix("runs/ordered/")
        if method == "PUT" and name.startswith("ep"):
            at = int(name[2 : name.index("-")])
            assert {f"sources/{source}/round{at}-step0.pt" for source in SOURCES} <= there
        there |= {name} if method == "PUT" else set()
    link = server.client.get_object(Bucket=BUCKET, Key="runs/ordered/latest-rank0.pt.symlink")
    assert link["Body"].read().decode() == "runs/ordered/ep3-ba36-rank0.pt"


def test_private_files_stay_on_their_machine_if_asked_for(
    prepared, unbroken, server, link, monkeypatch, tmp_path
):
    run = Run(prepared, "private", "algorithms.dept.upload_sources=false")
    run.ends_at(monkeypatch, 2 * PER_ROUND + 1)
    assert not [key for _, key in server.requests if "sources" in key]
    assert checkpoints(run.stored(server)) == ["ep2-ba24-rank0.pt", "ep2-ba25-rank0.pt"]
    shutil.copytree(run.folder / "checkpoints" / "sources", tmp_path / "sources")
    run.moves()
    with pytest.raises(ConfigError, match="from the machine that trained it"):
        run.goes_on()
    shutil.copytree(tmp_path / "sources", run.folder / "checkpoints" / "sources")
    assert same(tensors_of(run.goes_on()), unbroken)


def test_what_was_cut_short_there_is_left_out(prepared, unbroken, server, link, monkeypatch, capfd):
    run = Run(prepared, "torn-there", "save_num_checkpoints_to_keep=3")
    run.ends_at(monkeypatch, 2 * PER_ROUND + 1)
    run.moves()
    run.alter(server, "ep2-ba25-rank0.pt")
    run.alter(server, "sources/code/round2-step0.pt")
    assert same(tensors_of(run.goes_on()), unbroken)
    said = capfd.readouterr().err
    assert "ep2-ba25-rank0.pt is left out: " in said
    assert "ep2-ba24-rank0.pt is left out: a file of code was cut short or altered" in said
    assert "ep1-ba12-rank0.pt was fetched" in said


def test_what_cannot_be_sent_costs_nothing_that_was(
    prepared, unbroken, server, link, monkeypatch, capfd
):
    run = Run(prepared, "unsent")

    def fails(_, state, logger):
        if state.timestamp.batch == PER_ROUND + 2:
            next(c for c in state.callbacks if isinstance(c, Checkpoints)).remote.wait()
            link.is_down.set()

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSigterm, "batch_end", fails)
        with pytest.raises(NotSaved, match=r"could not be written .*check the connection"):
            run.goes_on()
    said = capfd.readouterr().err
    assert "what was there is kept" in said and "training continues" in said
    assert checkpoints(run.stored(server)) == ["ep1-ba12-rank0.pt"]
    assert [r for r, *_ in numbered_checkpoints(run.folder / "checkpoints")][-1] == 3
    with pytest.raises(ConfigError, match=r"save_folder s3://.* cannot be used"):
        run.goes_on()
    link.is_down.clear()
    assert same(tensors_of(run.goes_on()), unbroken)  # and the same command sends what is missing
    assert "ep3-ba36-rank0.pt" in run.stored(server)
