"""Checkpoints and tokenizers made to run code, in runs and in data preparation."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from hostile import Hostile
from training import DEPT, LOCAL_STEPS, MPT, REPOSITORY, overrides, train

from dept.checkpoint import trust
from dept.checkpoint.source_files import SourceFiles

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def guarded(monkeypatch):
    monkeypatch.setenv(trust.FORCE, "1")
    trust.guard()


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
