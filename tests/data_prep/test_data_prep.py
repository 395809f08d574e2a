"""Data preparation from text to shards: exact contents and statistics."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import zstandard
from made_up_text import sentences
from tokenizers import Tokenizer

from dept.data_prep.collect import document_draw
from dept.data_prep.corpus import TokenizerOptions
from dept.data_prep.pool import Task
from dept.data_prep.shards import Packer, bytes_of_tokens, token_dtype
from dept.data_prep.train_tokenizer import count_words, describe_tokenizer, train_tokenizer
from dept.errors import DataError

NASTY = "</s><s> <0x41>\t▁▁ \u2028 é e\u0301 漢字🎉\r\n  \n x  y \ue00a \u0663\u0664 \u017f"


class Quiet(Task):
    """A task that nobody watches."""

    def report(self, size):
        pass


def write_source(folder: Path, documents: list[str]) -> dict:
    """Text parts and summary of a source, as stage 1 leaves them."""
    (folder / "text/train").mkdir(parents=True)
    lines = "".join(json.dumps({"text": d}) + "\n" for d in documents).encode()
    (folder / "text/train/00000.jsonl.zst").write_bytes(zstandard.compress(lines))
    return {"train": {"bytes": sum(len(d.encode()) for d in documents), "parts": [0]}}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Path:
    """A trained tokenizer directory."""
    root = tmp_path_factory.mktemp("tokenizer")
    summary = write_source(root / "a", [*sentences(800, 1), "</s>", "<0x41>", "a ▁ b"])
    count_words(Quiet(), root / "a", summary, 10**6)
    sources = {"a": {"path": root / "a", "bytes": summary["train"]["bytes"]}}
    train_tokenizer(Quiet(), root / "t" / "a", TokenizerOptions(vocab_size=700), sources)
    return root / "t" / "a"


def test_tokenizer_gives_back_any_text_and_no_text_makes_special_ids(tokenizer):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    assert [loaded.unk_token_id, loaded.bos_token_id, loaded.eos_token_id] == [0, 1, 2]
    assert loaded.pad_token_id == 3 and len(loaded) == 700
    draw = random.Random(0)
    texts = [NASTY, *sentences(20, 2)]
    for _ in range(200):
        points = draw.choice([draw.randrange(1, 0x300), draw.randrange(0xE000, 0x1F700)])
        texts.append("".join(chr(points + draw.randrange(40)) for _ in range(30)))
    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    encoder.encode_special_tokens = True
    for text in texts:
        ids = encoder.encode(text, add_special_tokens=False).ids
        assert loaded.decode(ids) == text and min(ids) > 3
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert len(encoder.encode(sentences(1, 1)[0]).ids) < 60  # words are pieces, not characters


def test_too_large_a_vocabulary_is_what_the_text_has(tmp_path):
    summary = write_source(tmp_path / "a", ["to be or not to be"] * 9)
    count_words(Quiet(), tmp_path / "a", summary, 10**6)
    options = TokenizerOptions(vocab_size=50000)
    sources = {"a": {"path": tmp_path / "a", "bytes": summary["train"]["bytes"]}}
    train_tokenizer(Quiet(), tmp_path / "t" / "a", options, sources)
    facts = describe_tokenizer(tmp_path / "t" / "a", options)
    assert 260 < facts["vocab_size"] < 300
    assert facts["eos_id"] == 2 and facts["special_ids"] == [0, 1, 2, 3]


@pytest.mark.parametrize("length, batch", [(8, 1), (16, 7), (128, 1000)])
def test_shards_hold_the_tokens_of_the_text_and_the_bytes_are_counted(
    tokenizer, tmp_path, length, batch
):
    documents = [*sentences(60, 3), NASTY, "漢字" * 40, "end"]
    facts = {"path": tokenizer, **describe_tokenizer(tokenizer, TokenizerOptions())}
    packer = Packer(facts, length, tmp_path / "out")
    for start in range(0, len(documents), batch):
        packer.add(documents[start : start + batch])
    packer.close()

    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    encoder.encode_special_tokens = True
    stream = [i for d in documents for i in [*encoder.encode(d).ids, 2]]
    whole = len(stream) // length * length
    part = json.loads((tmp_path / "out/part.json").read_text())
    assert part["tokens"] == whole and part["samples"] == whole // length
    assert part["dropped_tokens"] == len(stream) - whole
    assert np.load(tmp_path / "out/counts.npy").tolist() == [
        stream[:whole].count(i) for i in range(700)
    ]

    # Bytes, counted anew: every token of this tokenizer stands for certain bytes.
    size = [0] * 4 + [1] * 256
    size += [len(encoder.id_to_token(i).encode()) for i in range(260, 700)]
    assert part["bytes"] == sum(size[i] for i in stream[:whole])
    ends = np.cumsum([len(encoder.encode(d).ids) + 1 for d in documents])
    assert part["documents"] == 1 + int((ends[:-1] < whole).sum())


def test_bytes_of_tokens_counts_parts_of_characters(tokenizer):
    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    text = "ab 漢字 cd"
    ids = encoder.encode(text).ids
    size = [1 if i < 260 else len(encoder.id_to_token(i).encode()) for i in ids]
    for count in range(len(ids) + 1):
        assert bytes_of_tokens(encoder, text, count) == sum(size[:count])


def test_dtype_follows_the_vocabulary():
    assert [token_dtype(v) for v in (65535, 65536, 65537)] == ["uint16", "uint16", "uint32"]


def test_draws_are_spread_and_belong_to_the_text():
    draws = np.array([document_draw(str(i).encode()) for i in range(2000)])
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.03
    assert document_draw(b"text") == document_draw(b"text")


def test_an_existing_tokenizer_is_copied_and_padded(tokenizer, tmp_path):
    options = TokenizerOptions(path=str(tokenizer), vocab_size=70000)
    train_tokenizer(Quiet(), tmp_path / "t" / "global", options, {})
    facts = describe_tokenizer(tmp_path / "t" / "global", options)
    assert facts == {"eos_id": 2, "special_ids": [0, 1, 2, 3], "vocab_size": 70000}
    assert token_dtype(facts["vocab_size"]) == "uint32"
    copy = Tokenizer.from_file(str(tmp_path / "t" / "global" / "tokenizer.json"))
    assert copy.decode(copy.encode(NASTY).ids, skip_special_tokens=False) == NASTY
    with pytest.raises(DataError, match="has 700 ids and vocab_size is 600: raise it"):
        describe_tokenizer(tmp_path / "t" / "global", TokenizerOptions(600, path="t"))
    with pytest.raises(DataError, match="Tokenizer directory nowhere does not exist"):
        train_tokenizer(Quiet(), tmp_path / "t" / "b", TokenizerOptions(path="nowhere"), {})
