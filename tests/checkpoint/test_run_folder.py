"""What a killed process leaves behind."""

import os

import pytest
import torch
from omegaconf import OmegaConf

from dept.checkpoint.run_folder import checkpoint_name, hold, recover, refuse_other_settings
from dept.checkpoint.source_files import SourceFiles
from dept.errors import ConfigError


def checkpoint(folder, name, *, torn=False):
    path = folder / name
    torch.save({"weights": torch.randn(1000)}, path)
    if torn:
        os.truncate(path, path.stat().st_size - 100)
    return path


def link(folder):
    return os.readlink(folder / "latest-rank0.pt")


def test_a_torn_checkpoint_is_set_aside_and_the_one_before_it_taken(tmp_path):
    checkpoint(tmp_path, "ep1-ba10-rank0.pt")
    checkpoint(tmp_path, "ep2-ba20-rank0.pt", torn=True)
    (tmp_path / "latest-rank0.pt").symlink_to("ep1-ba10-rank0.pt")
    assert recover(tmp_path) == [tmp_path / "ep2-ba20-rank0.pt.torn"]
    assert link(tmp_path) == "ep1-ba10-rank0.pt"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ep1-ba10-rank0.pt",
        "ep2-ba20-rank0.pt.torn",
        "latest-rank0.pt",
    ]
    assert recover(tmp_path) == []


def test_an_altered_checkpoint_is_found_by_its_checksum(tmp_path):
    checkpoint(tmp_path, "ep1-ba10-rank0.pt")
    path = checkpoint(tmp_path, "ep2-ba20-rank0.pt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    torch.load(path)  # torch does not notice
    assert recover(tmp_path) == [tmp_path / "ep2-ba20-rank0.pt.torn"]
    assert link(tmp_path) == "ep1-ba10-rank0.pt"


def test_a_checkpoint_is_no_use_without_the_files_of_its_sources(tmp_path):
    checkpoint(tmp_path, "ep1-ba10-rank0.pt")
    checkpoint(tmp_path, "ep2-ba20-rank0.pt")
    files = SourceFiles(tmp_path / "sources")
    for round_index in (1, 2):
        path = files.write("en", round_index, 0, {"value": torch.randn(100)})
    os.truncate(path, path.stat().st_size - 10)
    aside = {path.with_name("round2-step0.pt.torn"), tmp_path / "ep2-ba20-rank0.pt.torn"}
    assert {*recover(tmp_path)} == aside
    assert link(tmp_path) == "ep1-ba10-rank0.pt"
    assert files.read("en", 1) is not None


def test_a_link_lost_or_behind_is_pointed_at_the_newest(tmp_path):
    checkpoint(tmp_path, "ep0-ba9-rank0.pt")
    checkpoint(tmp_path, "ep0-ba10-rank0.pt")
    recover(tmp_path)
    assert link(tmp_path) == "ep0-ba10-rank0.pt"
    checkpoint(tmp_path, "ep1-ba10-rank0.pt")  # the same batch, after the outer step
    recover(tmp_path)
    assert link(tmp_path) == "ep1-ba10-rank0.pt"


def test_checkpoints_of_any_number_of_workers_are_told_apart_and_ordered(tmp_path):
    names = [checkpoint_name(n).format(epoch=1, batch=480 // n, rank=0) for n in (1, 2, 4)]
    assert names == ["ep1-ba480-rank0.pt", "ep1-ba240-w2-rank0.pt", "ep1-ba120-w4-rank0.pt"]
    for moment, name in enumerate(names):
        checkpoint(tmp_path, name)
        os.utime(tmp_path / name, (moment, moment))  # a disk's clock may be coarse
        recover(tmp_path)
        assert link(tmp_path) == name
    checkpoint(tmp_path, "ep0-ba960-rank0.pt")
    recover(tmp_path)
    assert link(tmp_path) == names[-1]


def test_a_link_to_nothing_whole_is_removed(tmp_path):
    checkpoint(tmp_path, "ep0-ba9-rank0.pt", torn=True)
    (tmp_path / "latest-rank0.pt").symlink_to("ep0-ba9-rank0.pt")
    recover(tmp_path)
    assert not (tmp_path / "latest-rank0.pt").is_symlink()


def test_a_folder_that_is_not_there_is_left_so(tmp_path):
    assert recover(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_where_data_is_cached_may_change_and_how_it_is_shuffled_may_not(tmp_path):
    stored = tmp_path / "config.yaml"
    loader = {"remote": "s3://one", "cache_limit": "1gb", "block_shards": 16}
    OmegaConf.save(OmegaConf.create({"train_loader": loader}), stored)
    refuse_other_settings({"train_loader": {"block_shards": 16, "cache_limit": 5}}, stored)
    with pytest.raises(ConfigError, match=r"train_loader.block_shards = 16, the yaml says 8"):
        refuse_other_settings({"train_loader": {**loader, "block_shards": 8}}, stored)


def test_sources_may_change_only_where_that_is_allowed(tmp_path):
    stored = tmp_path / "config.yaml"

    def config(sources, drawn, allowed=None, seed=17):
        dept = {"sources_per_round": drawn, "variant": "spec"}
        dept |= {} if allowed is None else {"allow_source_changes": allowed}
        return {"train_loader": {"sources": sources, "seed": seed}, "algorithms": {"dept": dept}}

    OmegaConf.save(OmegaConf.create(config(["en", "it"], 2)), stored)
    for other in (config(["en", "it", "el"], 2), config(["en", "it"], 1, False)):
        with pytest.raises(ConfigError, match=r"set algorithms.dept.allow_source_changes: true"):
            refuse_other_settings(other, stored)
    refuse_other_settings(config(["en", "el"], 1, True), stored)
    refuse_other_settings(config(["en", "it"], 2, True), stored)
    with pytest.raises(ConfigError, match="seed = 17, the yaml says 18: set it back, c"):
        refuse_other_settings(config(["en"], 1, True, seed=18), stored)
    mixture = {"train_loader": {"sources": ["en"]}}
    OmegaConf.save(OmegaConf.create(mixture), stored)
    with pytest.raises(ConfigError, match="set it back, choose another run_name, or remove"):
        refuse_other_settings({"train_loader": {"sources": ["it"]}}, stored)


def test_a_run_is_held_by_one_job_at_a_time(tmp_path):
    with (
        hold(tmp_path / "run"),
        pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"),
    ):
        hold(tmp_path / "run", wait=0.0)
    hold(tmp_path / "run", wait=0.0).lock.release()
