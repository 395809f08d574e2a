"""dept/data/corpus.py: what is counted from tokens, and readers that refuse what is not whole."""

import json
import math

import numpy as np
import pytest

from dept.data.corpus import read_corpus, read_source
from dept.data.token_counts import count_tokens, local_vocabulary, unigram_cross_entropy
from dept.data.tokenizer_files import tokenizer_hash
from dept.data_prep.mds import TokenShards
from dept.errors import DataError


def test_padding_and_ignored_labels_are_not_counted():
    assert count_tokens(np.array([[0, 3, -100], [3, -1, 1]]), 5).tolist() == [1, 1, 0, 2, 0]


def test_counts_are_sized_by_the_vocabulary():
    counts = count_tokens(np.array([1, 1], np.uint16), 5)
    assert counts.tolist() == [0, 2, 0, 0, 0] and counts.dtype == np.int64
    assert count_tokens(np.array([], np.int64), 3).tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="id 5 is beyond the vocabulary of 5"):
        count_tokens(np.array([5]), 5)
    with pytest.raises(DataError, match="one vocabulary"):
        unigram_cross_entropy(np.ones(3), np.ones(4))


def test_the_unigram_model_is_smoothed_over_the_whole_vocabulary():
    # train 3 of a, 1 of b, none of c; smoothed 4/7, 2/7, 1/7
    value = unigram_cross_entropy(np.array([1, 1, 2]), np.array([3, 1, 0]))
    assert value == pytest.approx(-(math.log(4 / 7) + math.log(2 / 7) + 2 * math.log(1 / 7)) / 4)
    uniform = unigram_cross_entropy(np.array([5, 0, 7]), np.zeros(3, np.int64))
    assert uniform == pytest.approx(math.log(3))


def test_a_token_that_training_never_saw_costs_much_but_not_infinity():
    train = np.array([10**9, 0])
    assert unigram_cross_entropy(np.array([0, 1]), train) == pytest.approx(math.log(10**9 + 2))
    with pytest.raises(DataError, match="no validation tokens"):
        unigram_cross_entropy(np.zeros(2), train)


def test_local_vocabulary_is_sorted_and_holds_special_ids_once():
    ids = local_vocabulary(np.array([0, 2, 0, 1, 0]), [3, 0])
    assert ids.tolist() == [0, 1, 3] and ids.dtype == np.int64


def write_split(folder, samples):
    shards = TokenShards(folder, 4, "uint16")
    shards.write(np.ones((samples, 4), np.uint16))
    shards.close()


@pytest.fixture
def root(tmp_path):
    """A corpus of one source in two samples of four tokens."""
    tokenizer = tmp_path / "tokenizers/c/global"
    tokenizer.mkdir(parents=True)
    (tokenizer / "tokenizer.json").write_text("{}")
    digest = tokenizer_hash(tokenizer)
    split = {"documents": 1, "bytes": 9, "tokens": 8, "samples": 2, "dropped_tokens": 1}
    stats = {
        "source": "a",
        "tokenizer": {"name": "global", "hash": digest, "special_ids": [0]},
        "vocab_size": 5,
        "local_vocab_size": 3,
        "sequence_length": 4,
        "dtype": "uint16",
        "splits": {"train": split, "val": split},
        "unigram_ce": 1.0,
    }
    corpus = {
        "corpus": "c",
        "sequence_length": 4,
        "sources": ["a"],
        "held_out": [],
        "tokenizers": {"global": {"path": "tokenizers/c/global", "hash": digest, "vocab_size": 5}},
    }
    folder = tmp_path / "data/c/a/global"
    for name in ("train", "val"):
        (folder / name).mkdir(parents=True)
        write_split(folder / name, 2)
    (folder / "stats.json").write_text(json.dumps(stats))
    np.save(folder / "counts.npy", np.array([0, 5, 0, 3, 0]))
    (tmp_path / "data/c/corpus.json").write_text(json.dumps(corpus))
    return tmp_path


def test_reading(root):
    corpus = read_corpus(root, "c")
    source = corpus.source("a")
    assert corpus.sources == ("a",) and source.splits["val"].samples == 2
    assert source.local_vocabulary().tolist() == [0, 1, 3]
    assert source.train == root / "data/c/a/global/train"


def test_what_is_missing_or_not_whole_is_refused_with_its_mend(root):
    with pytest.raises(DataError, match=r"data/d/corpus.json does not exist.*make data CORPUS=d"):
        read_corpus(root, "d")
    corpus = read_corpus(root, "c")
    with pytest.raises(DataError, match="no source 'b': it has a"):
        corpus.source("b")
    with pytest.raises(DataError, match="not tokenized with 'a': there is global"):
        corpus.source("a", "a")
    folder = root / "data/c/a/global"
    np.save(folder / "counts.npy", np.array([0, 5, 0, 2, 0]))
    with pytest.raises(DataError, match=r"does not belong to the stats\.json"):
        corpus.source("a").counts()
    write_split(folder / "val", 1)
    with pytest.raises(DataError, match=r"val/index.json counts 1 samples and stats"):
        read_source(folder)
    (folder / "train/index.json").unlink()
    with pytest.raises(DataError, match=r"train/index.json does not exist.*prepare.py"):
        read_source(folder)
    (root / "tokenizers/c/global/tokenizer.json").write_text("{ }")
    with pytest.raises(DataError, match="not the tokenizer that"):
        read_corpus(root, "c")
