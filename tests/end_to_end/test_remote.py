"""A corpus in a bucket: what is fetched before a run, ahead of its need, and in a run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from s3 import BUCKET, S3Server
from small_shards import reshard
from training import REPOSITORY, load, tensors_of, train

from dept.data.corpus import read_corpus
from dept.data.fetch import fetch_corpus
from dept.data.loader import SourceLoader, ValidationLoader
from dept.data.shard_cache import ShardCache, block_bytes
from dept.data.shards import TokenReader
from dept.errors import ConfigError, DataError
from dept.method.schedule import RoundSchedule

SAMPLES = 40  # in a shard
SOURCES = ("manual", "code", "mail", "tools")


@pytest.fixture(scope="module")
def stored(prepared, tmp_path_factory) -> Path:
    """The corpus ``tiny`` in small shards: the root that stands in the bucket."""
    root = tmp_path_factory.mktemp("stored")
    reshard(prepared, root, SAMPLES)
    return root


@pytest.fixture(scope="module")
def server():
    with S3Server() as server:
        yield server


@pytest.fixture(scope="module")
def bucket(server, stored) -> str:
    return server.upload(stored, "tiny")


@pytest.fixture
def s3(server, bucket, monkeypatch) -> S3Server:
    """The server, with nothing counted yet, and this process its client."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.requests.clear()
    yield server
    server.gate.set()
    server.seconds_per_chunk = 0.0


def files(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def test_the_small_files_of_what_is_used_are_fetched_once(s3, bucket, stored, tmp_path):
    fetch_corpus(bucket, tmp_path, "tiny", ["code"], own_tokenizers=True)
    corpus = read_corpus(tmp_path, "tiny")
    source = corpus.source("code", "code")
    assert source.counts().sum() == source.splits["train"].tokens
    here = files(tmp_path)
    assert {name for name in here if name.startswith("data/tiny/")} == {
        "data/tiny/corpus.json",
        *(f"data/tiny/code/code/{name}" for name in ("stats.json", "counts.npy")),
        *(f"data/tiny/code/code/{split}/index.json" for split in ("train", "val")),
    }
    assert {f"tokenizers/tiny/{name}/tokenizer.json" for name in corpus.tokenizers} < here
    assert len(s3.fetched()) == len(here)
    assert all((tmp_path / f).read_bytes() == (stored / f).read_bytes() for f in here)
    s3.requests.clear()
    fetch_corpus(bucket, tmp_path, "tiny", ["code"], own_tokenizers=True)
    assert s3.requests == []
    fetch_corpus(bucket, tmp_path, "tiny", ["code"], held_out=True)
    folders = {str(Path(name).parent.parent) for name in s3.fetched("train/index.json")}
    assert folders == {"tiny/data/tiny/code/global", "tiny/data/tiny/held/global"}


def test_an_address_that_gives_nothing_is_refused(s3, bucket, stored, tmp_path, monkeypatch):
    mend = r"cannot be fetched \(.+\): correct train_loader.remote.* S3_ENDPOINT_URL"
    for remote in (f"{bucket}/none", f"s3://no-{BUCKET}", str(tmp_path / "none")):
        with pytest.raises(DataError, match=rf"{remote}/data/tiny/corpus.json {mend}") as raised:
            fetch_corpus(remote, tmp_path, "tiny")
        assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match=rf"carrier://pigeon {mend}"):
        fetch_corpus("carrier://pigeon", tmp_path, "tiny")
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=mend):
        fetch_corpus(bucket, tmp_path, "tiny")
    assert not [name for name in files(tmp_path) if not name.endswith(".fetch")]
    with pytest.raises(ConfigError, match="leave remote out, or set root to"):
        fetch_corpus(str(stored), stored / "data/..", "tiny")
    (tmp_path / "data").mkdir(exist_ok=True)
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "data").symlink_to(stored / "data")
    with pytest.raises(ConfigError, match="leave remote out, or set root to"):
        fetch_corpus(str(stored), tmp_path, "tiny")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train_loader.cache_limit=5000", r"cache_limit is 5000 bytes, but (\d+) are needed"),
        ("train_loader.cache_limit=5kb", r"cache_limit is 5120 bytes, but (\d+) are needed"),
        ("train_loader.cache_limit=much", "cache_limit is 'much': set it to a number of bytes"),
        ("train_loader.cache_limit=0", "cache_limit is 0: set it to a whole number of 1 or more"),
        ("train_loader.block_shards=0", "block_shards is 0: set it to a whole number"),
        ("train_loader.remote=null", "cache_limit is for shards of train_loader.remote"),
    ],
)
def test_what_cannot_run_is_refused(stored, tmp_path, override, message):
    remote = [f"train_loader.remote={stored}", "train_loader.cache_limit=20mb"]
    with pytest.raises(ValueError, match=message) as raised:
        load(tmp_path, "dept_spec", *remote, override)
    needed = re.search(r"set it to (\d+) or more", str(raised.value))
    if needed:
        load(tmp_path, "dept_spec", *remote, f"train_loader.cache_limit={needed[1]}")
        with pytest.raises(ValueError, match="or more"):
            less = int(needed[1]) - 1
            load(tmp_path, "dept_spec", *remote, f"train_loader.cache_limit={less}")


def loader_of(root, sources, *, remote=None, limit=None, per_round=None):
    corpus = read_corpus(root, "tiny")
    loader = SourceLoader(
        {name: corpus.source(name) for name in sources},
        batch_size=8,
        seed=1,
        block_shards=2,
        remote=remote,
        cache_limit=limit,
    )
    loader.bind(RoundSchedule(tuple(sources), per_round or len(sources), 10, seed=1))
    loader.start(0, {}, dict.fromkeys(sources, 0))
    return loader


def key_of(source: str, number: int) -> str:
    return f"tiny/data/tiny/{source}/global/train/{number:05}/shard.00000.mds"


def wait_for_read_ahead(cache: ShardCache) -> None:
    """What a consumer slower than the server has at every batch: all that is wanted is here."""
    with cache._changed:
        assert cache._changed.wait_for(
            lambda: not (cache._under_way or any(map(cache._is_missing, cache._plan))), timeout=600
        )


def test_a_consumer_slower_than_the_server_waits_only_at_the_start(s3, bucket, stored, tmp_path):
    s3.seconds_per_chunk = 0.002
    fetch_corpus(bucket, tmp_path, "tiny", ["manual", "code"])
    s3.requests.clear()
    loader = loader_of(tmp_path, ["manual", "code"], remote=bucket)
    local = loader_of(stored, ["manual", "code"])
    orders = {name: source.order for name, source in loader._open.items()}
    waits = []
    for number, (ours, theirs) in enumerate(zip(loader, local, strict=True)):
        assert np.array_equal(ours["input_ids"], theirs["input_ids"])
        wait_for_read_ahead(loader._cache)
        waits.append(loader._cache.waits)
        if number == 0:  # its block, the next, and the next slot's
            second = orders["manual"].block_end(0)
            manual = [*orders["manual"].shards_at(0), *orders["manual"].shards_at(second)]
            keys = [key_of("manual", n) for n in manual]
            keys += [key_of("code", n) for n in orders["code"].shards_at(0)]
            assert sorted(s3.fetched(".mds")) == sorted(keys)
    assert 1 <= waits[0] <= 2 and waits[-1] == waits[0]  # the shards of the first batch
    got = s3.fetched(".mds")
    assert len(got) == len(set(got)) < sum(len(o.shard_samples) for o in orders.values())


def test_only_what_is_drawn_is_requested(s3, bucket, tmp_path):
    fetch_corpus(bucket, tmp_path, "tiny")
    s3.requests.clear()
    loader = loader_of(tmp_path, SOURCES, remote=bucket, per_round=1)
    for _ in loader:
        wait_for_read_ahead(loader._cache)
    drawn = {loader.schedule.drawn(n)[0] for n in (0, 1)}
    assert {key.split("/")[3] for key in s3.fetched()} == drawn < set(SOURCES)
    s3.requests.clear()
    evaluators = [
        ValidationLoader(source, batch_size=8, remote=bucket) for source in loader.prepared.values()
    ]
    assert s3.requests == []
    for _ in range(2):
        assert sum(len(b["labels"]) for b in evaluators[1]) == len(evaluators[1]._reader)
    assert len(s3.fetched()) == len(evaluators[1]._reader.shard_samples)
    assert all("/code/global/val/" in key for key in s3.fetched())


@pytest.mark.end_to_end
def test_a_process_killed_while_it_fetches_leaves_no_torn_shard(s3, bucket, stored, tmp_path):
    fetch_corpus(bucket, tmp_path, "tiny", ["code"])
    s3.requests.clear()
    s3.gate.clear()
    split = Path("data/tiny/code/global/train")
    read = (
        "from pathlib import Path; from dept.data.shards import TokenReader; "
        f"TokenReader(Path({str(tmp_path / split)!r}), remote={f'{bucket}/{split}'!r})[0]"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", read],
        cwd=REPOSITORY,
        env={**os.environ, **s3.environment},
    )
    while not s3.fetched(".mds"):
        assert process.poll() is None
        time.sleep(0.01)
    work = tmp_path / split / ".fetch-00000"
    assert work.exists()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert work.exists() and not list((tmp_path / split).glob("*/*.mds"))
    s3.gate.set()
    reader, whole = (
        TokenReader(tmp_path / split, remote=f"{bucket}/{split}"),
        TokenReader(stored / split),
    )
    assert not work.exists()
    assert all(np.array_equal(reader[i], whole[i]) for i in range(len(whole)))


@pytest.mark.end_to_end
def test_a_run_on_remote_shards_is_the_run_on_local_ones(s3, bucket, stored, tmp_path):
    small = ["train_loader.block_shards=2", "run_name=small"]
    local = train(stored, "dept_trim", *small)
    limit = max(block_bytes(stored / f"data/tiny/{n}/global/train", 2) for n in SOURCES) + 2000
    remote = [f"train_loader.remote={bucket}", f"train_loader.cache_limit={limit}"]
    trained = train(tmp_path, "dept_trim", *small, *remote)
    ours, theirs = tensors_of(trained), tensors_of(local)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    sources = [
        json.loads((root / "runs/small/summary.json").read_text())["sources"]
        for root in (stored, tmp_path)
    ]
    assert sources[0] == sources[1]
    shards = list(tmp_path.glob("data/tiny/*/global/train/**/*.mds"))
    assert 0 < sum(path.stat().st_size for path in shards) <= limit
    assert len(s3.fetched(".mds")) > len(set(s3.fetched(".mds")))  # removed and fetched again


@pytest.mark.end_to_end
def test_a_mixture_streams_from_the_bucket(s3, bucket, tmp_path):
    options = ["train_loader.epoch_batches=3", "global_train_batch_size=8", "max_duration=1ep"]
    remote = [f"train_loader.remote={bucket}", "train_loader.cache_limit=10mb"]
    trainer = train(tmp_path, "std", *options, *remote, "run_name=streamed")
    dataset = trainer.state.train_dataloader.dataset
    assert sum(dataset.positions.values()) == 3 * 8
    assert {key.split("/")[3] for key in s3.fetched(".mds")} == {*SOURCES, "held"}
