"""Data preparation from text to shards: exact contents, exact statistics, kills and mistakes."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard
from filelock import FileLock
from tokenizers import Tokenizer

from dept.data.corpus import read_corpus, unigram_cross_entropy
from dept.data_prep.collect import document_draw
from dept.data_prep.corpus import TokenizerOptions
from dept.data_prep.files import read_texts
from dept.data_prep.mds import TokenShards
from dept.data_prep.pool import Task
from dept.data_prep.shards import Packer, bytes_of_tokens, token_dtype
from dept.data_prep.train_tokenizer import count_words, describe_tokenizer, train_tokenizer
from dept.errors import DataError

REPOSITORY = Path(__file__).parents[2]
NASTY = "</s><s> <0x41>\t▁▁ \u2028 é e\u0301 漢字🎉\r\n  \n x  y \ue00a \u0663\u0664 \u017f"


class Quiet(Task):
    """A task that nobody watches."""

    def report(self, size):
        pass


def sentences(count: int, seed: int, alphabet: str = "abcdefghij") -> list[str]:
    """Documents of made-up words, the same for the same seed."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(alphabet, k=draw.randint(2, 9))) for _ in range(400)]
    return [" ".join(draw.choices(words, k=draw.randint(5, 40))) + "." for _ in range(count)]


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


@pytest.mark.end_to_end
@pytest.mark.parametrize("dtype, length", [("uint16", 128), ("uint32", 7)])
def test_shards_are_those_of_mds_writer(tmp_path, dtype, length):
    from streaming import MDSWriter

    samples = np.random.default_rng(0).integers(0, 60000, (1000, length)).astype(dtype)
    ours = TokenShards(tmp_path / "ours", length, dtype, limit=50_000)
    for start in range(0, 1000, 37):
        ours.write(samples[start : start + 37])
    ours.close()
    columns = {"tokens": f"ndarray:{dtype}:{length}"}
    with MDSWriter(
        columns=columns, out=str(tmp_path / "theirs"), hashes=["xxh64"], size_limit=50_000
    ) as theirs:
        for sample in samples:
            theirs.write({"tokens": sample})
    assert tree(tmp_path / "ours") == tree(tmp_path / "theirs")


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file that is not hidden."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".")
    }


def command(root: Path, workers: int = 2) -> list[str]:
    script = str(REPOSITORY / "data_prep/prepare.py")
    arguments = [str(root / "mine.yaml"), "--root", str(root), "--workers", str(workers)]
    return [sys.executable, script, *arguments]


def prepare(root: Path, workers: int = 2) -> subprocess.CompletedProcess:
    return subprocess.run(command(root, workers), capture_output=True, text=True, cwd=root)


def write_corpus(root: Path) -> Path:
    """Three sources in three formats, several parts each."""
    (root / "texts").mkdir(parents=True)
    (root / "texts/en.txt").write_text("\n\n".join(sentences(3000, 10)))
    lines = [json.dumps({"text": t}) for t in sentences(2000, 11, "αβγδεζηθικ")]
    compressed = zstandard.compress("\n".join(lines).encode())
    (root / "texts/it.jsonl.zst").write_bytes(compressed)
    (root / "texts/el.txt").write_text("\n\n".join(sentences(400, 12)))
    (root / "mine.yaml").write_text(
        "corpus: mine\nsequence_length: 32\npart_bytes: 100kB\n"
        "tokenizers: {global: {vocab_size: 800}, own: {vocab_size: 600}}\n"
        "sources:\n  en: {files: texts/en.txt}\n  it: {files: texts/it.jsonl.zst}\n"
        "held_out:\n  el: {files: texts/el.txt}\n"
    )
    return root


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A corpus prepared in one go with one worker."""
    root = write_corpus(tmp_path_factory.mktemp("whole"))
    done = prepare(root, workers=1)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.end_to_end
def test_killed_runs_go_on_and_end_with_the_same_bytes(whole, tmp_path):
    root = write_corpus(tmp_path / "killed")
    data = root / "data/mine"
    for pattern in (
        "en/text/parts/00000.json",
        "../../tokenizers/mine/global",
        "*/global/train/0*",
    ):
        process = subprocess.Popen(
            command(root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=root
        )
        while process.poll() is None and not list(data.glob(pattern)):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (data / "corpus.json").exists()
    again = prepare(root, workers=2)
    assert again.returncode == 0, again.stderr
    assert tree(root / "tokenizers") == tree(whole / "tokenizers")
    assert tree(root / "data") == tree(whole / "data")


@pytest.mark.end_to_end
def test_statistics_and_samples_against_an_independent_count(whole):
    from streaming import StreamingDataset

    corpus = read_corpus(whole, "mine")
    assert corpus.sources == ("en", "it") and corpus.held_out == ("el",)
    every = {name: set() for name in ("train", "val")}
    for name, tokenizer in [("en", "global"), ("en", "en"), ("it", "it"), ("el", "global")]:
        source = corpus.source(name, tokenizer)
        encoder = Tokenizer.from_file(str(corpus.tokenizers[tokenizer].path / "tokenizer.json"))
        counts = {}
        for split, path in (("train", source.train), ("val", source.val)):
            dataset = StreamingDataset(local=str(path), validate_hash="xxh64", batch_size=1)
            samples = np.stack([dataset[i]["tokens"] for i in range(len(dataset))])
            parts = sorted((path.parents[1] / "text" / split).glob("*.zst"))
            groups = [[p] for p in parts] if split == "train" else [parts]
            assert split == "val" or name == "el" or len(groups) > 1
            expected, documents = [], []
            for group in groups:
                texts = [text for part in group for text in read_texts(part)]
                documents += texts
                stream = [i for t in texts for i in [*encoder.encode(t).ids, 2]]
                expected += stream[: len(stream) // 32 * 32]
            assert samples.reshape(-1).tolist() == expected
            assert samples.dtype == np.uint16
            every[split] |= set(documents)
            counts[split] = np.bincount(expected, minlength=source.vocab_size)
            stats = source.splits[split]
            assert stats.tokens == len(expected) and stats.samples == len(expected) // 32
            total = sum(len(d.encode()) for d in documents)
            assert total - 1000 * len(groups) < stats.bytes <= total
        assert (source.counts() == counts["train"]).all()
        used = set(np.flatnonzero(counts["train"])) | {0, 1, 2, 3}
        assert source.local_vocab_size == len(used) == len(source.local_vocabulary())
        assert source.unigram_ce == unigram_cross_entropy(counts["val"], counts["train"])
        assert source.splits["val"].samples >= 20
    assert not every["train"] & every["val"]
    documents = {*sentences(3000, 10), *sentences(2000, 11, "αβγδεζηθικ"), *sentences(400, 12)}
    assert every["train"] | every["val"] == documents
    records = [json.loads(p.read_text()) for p in whole.glob("data/mine/en/text/collected.json")]
    assert records[0]["train"]["documents"] + records[0]["val"]["documents"] == 3000


@pytest.mark.end_to_end
def test_a_finished_corpus_is_left_alone_and_a_changed_one_refused(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    again = prepare(whole)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == before

    yaml, text = whole / "mine.yaml", whole / "texts/en.txt"
    original, words = yaml.read_text(), text.read_text()
    yaml.write_text("# a remark\n" + original)
    assert prepare(whole).returncode == 0
    yaml.write_text(original.replace("sequence_length: 32", "sequence_length: 64"))
    changed = prepare(whole)
    assert changed.returncode == 1
    assert "sequence_length was 32 and is 64; delete" in changed.stderr
    yaml.write_text(original)
    text.write_text(words + "!")
    assert "the files of source en have changed" in prepare(whole).stderr
    text.write_text(words)
    assert {
        p: p.stat().st_mtime_ns for p in before if p not in (yaml, text)
    }.items() <= before.items()


@pytest.mark.end_to_end
def test_what_cannot_be_prepared_is_said_in_one_sentence(tmp_path):
    root = tmp_path
    (root / "few.txt").write_text("\n\n".join(sentences(6, 1)))
    (root / "one.txt").write_text("one paragraph")
    (root / "empty.txt").write_text("\n \n")
    head = "corpus: mine\nsequence_length: 2048\nsources: "
    for sources, message in [
        ("{a: {files: empty.txt}}", "Source a: it is empty; correct the source."),
        ("{a: {files: one.txt}}", "its 1 documents of 13 bytes cannot be split into training"),
        ("{a: {files: none.txt}}", "a.files: none.txt does not exist in"),
        ("{a: {files: few.txt}}", "its train text has"),
    ]:
        (root / "mine.yaml").write_text(head + sources)
        done = prepare(root, workers=1)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    with FileLock(root / "data/mine/.lock"):
        assert "Another preparation of" in prepare(root).stderr


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
