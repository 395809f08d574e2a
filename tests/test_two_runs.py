"""Two runs of one checkout at the same time, and one cache for several."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import MPT, REPOSITORY, overrides

from dept.options import ConfigError
from dept.remote import share_cache

LAUNCHER = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_PORT"}


def test_runs_of_dept_share_a_cache_and_a_mixture_shares_it_with_none(tmp_path):
    first, second = (share_cache(tmp_path, "c", alone=False) for _ in range(2))
    with pytest.raises(ConfigError, match=r"is the cache of train_loader.remote for another run"):
        share_cache(tmp_path, "c", alone=True)
    os.close(first)
    os.close(second)
    alone = share_cache(tmp_path, "c", alone=True)
    for wanted in (True, False):
        with pytest.raises(ConfigError, match=r"give this run another train_loader.root"):
            share_cache(tmp_path, "c", alone=wanted)
    share_cache(tmp_path, "other", alone=True)
    os.close(alone)
    share_cache(tmp_path, "c", alone=True)


@pytest.mark.end_to_end
def test_two_baselines_at_once_learn_what_each_would_alone(prepared, tmp_path):
    """Both read with StreamingDataset, whose shared memory has the same names for all."""
    memory = Path("/dev/shm")
    before = set(memory.iterdir())
    names = ("at-once-1", "at-once-2")
    command = [sys.executable, "train.py", "yamls/std.yaml", *overrides(prepared)]
    command += [*MPT, "variables.mixture_batch=8", "variables.local_steps=3"]
    # A trainer in this process has left marks of a launcher, which two jobs do not have in common.
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER}
    runs = [
        subprocess.Popen(
            [*command, f"run_name={name}"],
            cwd=REPOSITORY,
            env={**environment, "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in names
    ]
    for run in runs:
        said = run.communicate()[0]
        assert run.returncode == 0, said
    summaries = [json.loads((prepared / f"runs/{n}/summary.json").read_text()) for n in names]
    assert summaries[0]["sources"] == summaries[1]["sources"]
    learned = [
        torch.load(prepared / f"runs/{n}/checkpoints/latest-rank0.pt", weights_only=False)
        for n in names
    ]
    first, second = (content["state"]["model"] for content in learned)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert {p for p in memory.iterdir() if p.name[:6].isdigit()} <= before
    assert not list(tmp_path.glob("dept-[0-9]*"))
