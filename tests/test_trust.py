"""Checkpoints and tokenizers made to run code: none is run, and a sentence says what it was."""

import datetime
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training import DEPT, LOCAL_STEPS, MPT, REPOSITORY, overrides, train

from dept.checkpoint import trust
from dept.checkpoint.source_files import SourceFiles
from dept.errors import ConfigError


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Hostile(Calls):
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        super().__init__(os.mkdir, str(folder))


@pytest.fixture
def guarded(monkeypatch):
    monkeypatch.setenv(trust.FORCE, "1")
    trust.guard()


def test_a_checkpoint_with_code_is_refused_unread(tmp_path, monkeypatch):
    file, plain = tmp_path / "ep1-ba1-rank0.pt", tmp_path / "plain.pt"
    torch.save({"state": {"model": {}, "more": Hostile(tmp_path / "hacked")}}, file)
    for config in (
        {"load_path": str(file)},
        {"load_path": str(tmp_path / "ep1-ba1-rank{rank}.pt")},
    ):
        with pytest.raises(ConfigError, match=r"ba1-rank0.pt holds posix.mkdir, which loading it"):
            trust.check(config)
    torch.save({"rng": np.random.get_state(), "a": torch.ones(2)}, plain)
    trust.check({"load_path": str(plain)})
    plain.write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match=r"plain.pt cannot be read as a checkpoint"):
        trust.refuse_code(plain)
    assert not (tmp_path / "hacked").exists()
    monkeypatch.setenv(trust.FORCE, "0")  # whoever trusts it
    trust.check({"load_path": str(file)})


def test_torch_takes_plain_data_alone_whatever_it_is_asked_for(guarded, tmp_path):
    rng = {"rng": [{"numpy": np.random.get_state(), "python": (3, (1, 2), None)}]}
    torch.save(rng, tmp_path / "plain.pt")
    trust.refuse_code(tmp_path / "plain.pt")  # as train.py does, before Composer loads it
    found = torch.load(tmp_path / "plain.pt", weights_only=False)
    assert np.array_equal(found["rng"][0]["numpy"][1], rng["rng"][0]["numpy"][1])
    torch.save([Hostile(tmp_path / "hacked")], tmp_path / "hostile.pt")
    with pytest.raises(pickle.UnpicklingError) as refused:
        torch.load(tmp_path / "hostile.pt", weights_only=False)
    assert "posix.mkdir" in trust.say(refused.value) and not (tmp_path / "hacked").exists()
    assert "\n" not in trust.say(refused.value)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_in_shards_is_read_without_code(guarded, tmp_path):
    import torch.distributed.checkpoint as sharded

    state = {
        "a": torch.arange(6.0),
        "b": {"c": torch.ones(2, dtype=torch.bfloat16), "n": [{"k": 3}]},
    }
    sharded.save(state, checkpoint_id=tmp_path / "whole", no_dist=True)
    found = {"a": torch.zeros(6), "b": {"c": torch.zeros(2, dtype=torch.bfloat16), "n": [{"k": 0}]}}
    sharded.load(found, checkpoint_id=tmp_path / "whole", no_dist=True)
    assert torch.equal(found["a"], state["a"]) and found["b"]["n"] == [{"k": 3}]
    metadata = pickle.loads((tmp_path / "whole" / ".metadata").read_bytes())
    metadata.planner_data = Hostile(tmp_path / "hacked")
    (tmp_path / "whole" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(BaseException, match=r"posix.mkdir"):
        sharded.load(found, checkpoint_id=tmp_path / "whole", no_dist=True)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.filterwarnings("ignore")
def test_both_ways_in_which_composer_loads_take_plain_data_alone(guarded, tmp_path):
    """The paths that Composer's pull request 3937 restricts: a checkpoint, a state to resume."""
    from composer.checkpoint.load import load_resumption_checkpoint
    from composer.core import Timestamp
    from composer.utils.checkpoint import safe_torch_load

    trust.guard_resumption()
    rng = {"numpy": np.random.get_state(), "python": (3, (1, 2), None), "torch": torch.ones(3)}
    time = Timestamp(epoch=2, total_wct=datetime.timedelta(seconds=5))
    plain = {"timestamp": time.state_dict(), "rng": [rng], "rank_zero_seed": 17}
    plain |= {"schedulers": {"s": {"last_epoch": 4, "seen": {1, 2}}}, "dataset_state": {}}
    state = SimpleNamespace(
        timestamp=Timestamp(), schedulers=[], _load_dataset_state=lambda found: None
    )
    file, resumption = tmp_path / "c.pt", tmp_path / "resumption.pkl"
    torch.save(plain, file)
    resumption.write_bytes(pickle.dumps(plain))
    assert torch.equal(safe_torch_load(file)["rng"][0]["torch"], torch.ones(3))
    (found,) = load_resumption_checkpoint(state, str(resumption))
    assert np.array_equal(found["numpy"][1], rng["numpy"][1]) and found["python"] == rng["python"]
    assert torch.equal(found["torch"], rng["torch"]) and state.rank_zero_seed == 17
    assert state.timestamp.epoch == 2 and state.timestamp.total_wct.seconds == 5

    hostile = Hostile(tmp_path / "hacked")
    inside = io.BytesIO()
    torch.save(hostile, inside)
    torch.save({**plain, "more": hostile}, file)
    with pytest.raises(pickle.UnpicklingError, match=r"posix.mkdir"):
        safe_torch_load(file)
    for more, name in (
        (hostile, "posix.mkdir"),
        (Calls(eval, "1"), "builtins.eval"),
        (Calls(torch.storage._load_from_bytes, inside.getvalue()), "posix.mkdir"),
    ):
        resumption.write_bytes(pickle.dumps({**plain, "more": more}))
        with pytest.raises(pickle.UnpicklingError, match=name):
            load_resumption_checkpoint(state, str(resumption))
    assert not (tmp_path / "hacked").exists()


def test_an_archive_that_composer_unpacks_stays_in_its_folder(guarded, tmp_path):
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        archive.add(__file__, "../outside.py")
    with tarfile.open(tmp_path / "c.tar") as archive, pytest.raises(tarfile.TarError):
        archive.extractall(tmp_path / "in")  # as Composer does
    assert not (tmp_path / "outside.py").exists()


def test_a_python_that_cannot_unpack_safely_unpacks_nothing(guarded, tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    monkeypatch.setattr(tarfile.TarFile, "extractall", tarfile.TarFile.extractall)
    trust.guard()
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        archive.add(__file__, "inside.py")
    with tarfile.open(tmp_path / "c.tar") as archive, pytest.raises(ConfigError, match="use Pyth"):
        archive.extractall(tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_a_tokenizer_that_names_code_is_for_those_who_trust_it(tmp_path):
    config = {"tokenizer": {"name": str(tmp_path)}}
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text(json.dumps({"auto_map": {"AutoTokenizer": ["t.T", None]}}))
        with pytest.raises(ConfigError, match=r"names code to run .auto_map.: use a tokenizer"):
            trust.check(config)
        trust.check({"tokenizer": {"name": str(tmp_path), "kwargs": {"trust_remote_code": True}}})
        (tmp_path / name).unlink()
    trust.check(config)


@pytest.mark.end_to_end
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_tokenizer_is_copied_without_its_code(prepared, tmp_path, monkeypatch):
    """Data preparation takes a tokenizer that somebody else made; so does training."""
    import shutil

    from dept.data_prep.corpus import TokenizerOptions
    from dept.data_prep.train_tokenizer import train_tokenizer
    from dept.errors import DataError

    class Quiet:
        def report(self, size):
            pass

    theirs = tmp_path / "theirs"
    shutil.copytree(prepared / "tokenizers/tiny/global", theirs)
    (theirs / "evil.py").write_text(
        f"import os; os.mkdir({str(tmp_path / 'hacked')!r})\nT = None\n"
    )
    config = json.loads((theirs / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["evil.T", "evil.T"]}
    (theirs / "tokenizer_config.json").write_text(json.dumps(config))
    options = TokenizerOptions(path=str(theirs))
    train_tokenizer(Quiet(), tmp_path / "t/global", options, {})
    assert "auto_map" not in (tmp_path / "t/global/tokenizer_config.json").read_text()
    config["tokenizer_class"] = "T"  # nothing of transformers
    (theirs / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="cannot be loaded"):
        train_tokenizer(Quiet(), tmp_path / "u/global", options, {})
    assert not (tmp_path / "hacked").exists()


@pytest.mark.end_to_end
def test_a_run_goes_on_from_its_checkpoint_and_not_from_a_hostile_one(prepared, guarded, tmp_path):
    small = ["run_name=hostile", "max_duration=1ep"]
    train(prepared, "dept_spec", *small)
    folder = prepared / "runs/hostile"
    (folder / "summary.json").unlink()
    resumed = train(prepared, "dept_spec", "run_name=hostile", "max_duration=2ep")
    assert resumed.state.timestamp.batch == 2 * 4 * LOCAL_STEPS
    assert resumed.state.load_path is not None
    newest = next((folder / "checkpoints").glob("ep2-*.pt"))
    content = torch.load(newest, weights_only=False)
    content["state"]["more"] = Hostile(tmp_path / "hacked")
    torch.save(content, newest)
    (folder / "summary.json").unlink()
    options = [*overrides(prepared), *MPT, *DEPT, "run_name=hostile"]
    command = [sys.executable, "train.py", "yamls/dept_spec.yaml", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{newest} holds posix.mkdir, which loading it would run" in done.stderr
    with pytest.raises(pickle.UnpicklingError, match=r"posix.mkdir"):  # past that check
        train(prepared, "dept_spec", "run_name=hostile-2", f"load_path={newest}")
    private = folder / "checkpoints/sources/code/round2-step0.pt"
    content = torch.load(private, weights_only=False)
    torch.save({**content, "more": Hostile(tmp_path / "hacked")}, private)
    with pytest.raises(pickle.UnpicklingError, match=r"posix.mkdir"):
        SourceFiles(private.parents[1]).read("code", 2, 0)
    assert not (tmp_path / "hacked").exists()
