"""Shards and their index as files: what is not as it was written, and what must not be read."""

import json
import os
import shutil

import numpy as np
import pytest
from training import load

from dept.data.corpus import read_corpus, read_source
from dept.data.shard_files import fault, is_name, read_index, tokens
from dept.data_prep.check import main as check_data
from dept.data_prep.mds import TokenShards
from dept.data_prep.prepare import main as prepare
from dept.errors import DataError


@pytest.fixture
def split(tmp_path):
    writer = TokenShards(tmp_path / "val", 4, "uint16", limit=400)
    writer.write(np.arange(100).reshape(25, 4))
    writer.close()
    return tmp_path / "val"


def index_of(split):
    return read_index(split, "mend it")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def first(change):
    """A change of the first shard of an index."""
    return lambda content: change(content["shards"][0])


def test_tokens_are_those_that_were_written(split):
    index = index_of(split)
    assert len(index.shards) > 1 and index.samples == 25
    assert np.array_equal(np.concatenate([tokens(s) for s in index.shards]).reshape(-1), range(100))
    assert [fault(shard, 100) for shard in index.shards] == [None] * len(index.shards)


def test_every_change_of_a_shard_is_found(split):
    shard = index_of(split).shards[0]
    whole = shard.path.read_bytes()
    for position in range(0, len(whole), 7):
        data = bytearray(whole)
        data[position] ^= 1
        shard.path.write_bytes(data)
        assert "is not as it was written, by its xxh64" in fault(shard, 100)
    shard.path.write_bytes(whole[:-1])
    assert "bytes, but" in fault(shard, 100)
    shard.path.unlink()
    assert "is missing" in fault(shard, 100)


def test_without_hashes_layout_and_tokens_are_looked_at(split):
    edit(split / "index.json", first(lambda s: s["raw_data"].update(hashes={})))
    shard = index_of(split).shards[0]
    whole = shard.path.read_bytes()
    assert "beyond the vocabulary of 7" in fault(shard, 7)
    for position in (0, 4, 9):  # of the number of samples, and of offsets
        data = bytearray(whole)
        data[position] ^= 1
        shard.path.write_bytes(data)
        assert fault(shard, 100) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(column_encodings=["pkl"]), "has the columns pkl"),
        (lambda s: s.update(column_encodings=["ndarray"]), "has the columns ndarray"),
        (lambda s: s.update(column_names=["text"]), "where one of tokens is expected"),
        (lambda s: s.update(format="json"), "where one of tokens is expected"),
        (lambda s: s["raw_data"].update(basename="../../x"), r"names a file '../../x': do not use"),
        (lambda s: s["raw_data"].update(basename="/etc/x"), r"names a file '/etc/x': do not use"),
        (
            lambda s: s.update(zip_data={"basename": "a/../b", "bytes": 1, "hashes": {}}),
            r"names a file 'a/../b'",
        ),
        (lambda s: s.update(samples=-1), "is not an index of MDS shards: mend it"),
        (lambda s: s.pop("raw_data"), "is not an index of MDS shards: mend it"),
    ],
)
def test_an_index_from_elsewhere_names_no_code_and_no_file_elsewhere(split, change, message):
    edit(split / "index.json", first(change))
    with pytest.raises(DataError, match=message):
        index_of(split)


def test_names_stay_in_their_folder():
    assert all(map(is_name, ("en", "zh-Hans", "shard.00000.mds", "x_1")))
    assert not any(map(is_name, ("", ".", "..", "a/b", ".hidden", "a\0", None, "a\n", "x" * 300)))


@pytest.fixture
def corpus(prepared, tmp_path):
    """A copy of the small corpus, to be damaged."""
    for name in ("data", "tokenizers"):
        shutil.copytree(prepared / name, tmp_path / name)
    for path in prepared.glob("*.txt"):
        shutil.copy(path, tmp_path)
    shutil.copy(prepared / "tiny.yaml", tmp_path)
    return tmp_path


def said(capsys, root):
    """Status and lines of `make check-data`."""
    status = check_data(["tiny", "--root", str(root), "--workers", "1"])
    return status, capsys.readouterr().out.splitlines()


def test_check_data_names_everything_that_is_wrong_and_the_mends_mend_it(corpus, capsys):
    assert said(capsys, corpus)[0] == 0
    before = {p: p.read_bytes() for p in corpus.glob("data/tiny/*/*/**/*") if p.is_file()}
    source = corpus / "data/tiny"
    flipped = source / "code/global/train/00000/shard.00000.mds"
    data = bytearray(flipped.read_bytes())
    data[-100] ^= 4
    flipped.write_bytes(data)
    (source / "mail/global/val/00000/shard.00000.mds").unlink()
    os.truncate(source / "tools/tools/train/00000/shard.00000.mds", 5000)
    edit(source / "manual/global/stats.json", lambda s: s.update(unigram_ce=1.0))
    counts = np.load(source / "held/global/counts.npy")
    counts[[5, 6]] += [1, -1]
    np.save(source / "held/global/counts.npy", counts)
    status, lines = said(capsys, corpus)
    assert status == 1
    for part in (
        "code/global/train/00000/shard.00000.mds is not as it was written",
        "mail/global/val/00000/shard.00000.mds is missing",
        "tools/tools/train/00000/shard.00000.mds has 5,000 bytes",
        "manual/global/stats.json says unigram_ce = 1.0",
        "held/global/counts.npy does not count the tokens of its shards",
    ):
        assert sum(part in line for line in lines) == 1, (part, lines)
    assert len(lines) == 5
    for folder in ("code/global/train/00000", "mail/global/val/00000", "tools/tools/train/00000"):
        assert sum(f"remove {source / folder} and prepare" in line for line in lines) == 1
        shutil.rmtree(source / folder)
    for folder in ("manual/global", "held/global"):
        (source / folder / "stats.json").unlink()
    assert prepare([str(corpus / "tiny.yaml"), "--root", str(corpus), "--workers", "1"]) == 0
    assert {p: p.read_bytes() for p in before} == before
    assert said(capsys, corpus)[0] == 0


def test_a_split_of_another_tokenizer_is_found_before_training(corpus, capsys):
    """Even if somebody corrects the statistics, or prepares on what is there."""
    source = corpus / "data/tiny/code"
    right = {p: p.read_bytes() for p in (source / "global").rglob("*") if p.is_file()}
    shutil.rmtree(source / "global/val")
    shutil.copytree(source / "code/val", source / "global/val")
    other = json.loads((source / "code/stats.json").read_text())["splits"]["val"]
    edit(source / "global/stats.json", lambda s: s["splits"].update(val=other))
    with pytest.raises(DataError, match=r"val/index.json is not the one that .*stats.json was"):
        load(corpus, "dept_trim")
    status, lines = said(capsys, corpus)
    assert status == 1 and any("of another tokenizer" in line for line in lines)
    assert prepare([str(corpus / "tiny.yaml"), "--root", str(corpus), "--workers", "1"]) == 0
    assert {p: p.read_bytes() for p in right} == right


def test_what_is_damaged_is_refused_before_training(corpus):
    shard = corpus / "data/tiny/code/global/val/00000/shard.00000.mds"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 4
    shard.write_bytes(data)
    with pytest.raises(DataError, match=f"remove {shard.parent} and prepare the corpus again"):
        load(corpus, "dept_trim")
    shard.unlink()
    for experiment in ("dept_trim", "std"):
        with pytest.raises(DataError, match=r"shard.00000.mds is missing: remove"):
            load(corpus, experiment)


def test_pickled_counts_and_names_that_lead_elsewhere_are_refused(corpus):
    folder = corpus / "data/tiny/code/global"
    np.save(folder / "counts.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"counts.npy cannot be read"):
        read_source(folder).counts()
    config = corpus / "tokenizers/tiny/global/tokenizer_config.json"
    edit(config, lambda c: c.update(auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}))
    with pytest.raises(DataError, match=r"names code to run \(auto_map\)"):
        read_corpus(corpus, "tiny")
    edit(corpus / "data/tiny/corpus.json", lambda c: c["held_out"].append("../../evil"))
    with pytest.raises(DataError, match=r"has the name '../../evil'"):
        read_corpus(corpus, "tiny")


def test_a_remote_corpus_writes_nothing_outside_its_folder(corpus, tmp_path_factory):
    from dept.data.fetch import fetch_corpus
    from dept.data.shards import TokenReader

    root = tmp_path_factory.mktemp("here") / "root"
    index = corpus / "data/tiny/code/global/train/index.json"
    edit(index, first(lambda s: s["raw_data"].update(basename="../../../../../../outside")))
    fetch_corpus(str(corpus), root, "tiny", ["code"])
    with pytest.raises(DataError, match=r"names a file '../../../../../../outside'"):
        TokenReader(root / "data/tiny/code/global/train", remote=str(index.parent))
    edit(corpus / "data/tiny/corpus.json", lambda c: c["sources"].append("../../../outside"))
    with pytest.raises(DataError, match=r"has the name '../../../outside'"):
        fetch_corpus(str(corpus), root.parent / "other", "tiny")
    assert sorted(p.name for p in root.parent.iterdir()) == ["other", "root"]


def test_corpora_that_were_prepared_before_are_read(corpus, capsys):
    for stats in corpus.glob("data/tiny/*/*/stats.json"):
        edit(stats, lambda s: s.pop("index_sha256"))
        for index in stats.parent.glob("*/index.json"):
            edit(index, first(lambda s: s["raw_data"].update(hashes={})))
    load(corpus, "dept_spec_opt")
    status, lines = said(capsys, corpus)
    assert status == 0 and "18 shards have no hash" in lines[0]


def test_a_source_shorter_than_a_batch_is_trained_and_said(prepared):
    from omegaconf import OmegaConf

    from dept.config import complete as configs

    config = load(prepared, "dept_spec", "global_train_batch_size=900", checked=True)
    notes = configs.check(OmegaConf.to_container(config, resolve=True))
    assert any(n.startswith("source code has 8") and "a batch of 900" in n for n in notes)
