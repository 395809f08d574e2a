"""Checkpoints and tokenizers made to run code: none is run, and a sentence says what it was."""

import datetime
import io
import json
import pickle
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hostile import Calls, Hostile

from dept.checkpoint import trust
from dept.errors import ConfigError


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
def test_a_checkpoint_in_shards_is_read_without_code(guarded, tmp_path, capsys):
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
    capsys.readouterr()
    with pytest.raises(BaseException, match=r"posix.mkdir|metadata is None"):  # as of torch 2.11
        sharded.load(found, checkpoint_id=tmp_path / "whole", no_dist=True)
    assert "checkpoint to load names posix.mkdir, which" in capsys.readouterr().err
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
