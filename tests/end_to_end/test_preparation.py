"""Data preparation as a command: its bytes and statistics, kills and mistakes."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard
from filelock import FileLock
from made_up_text import sentences
from tokenizers import Tokenizer
from training import REPOSITORY

from dept.data.corpus import read_corpus
from dept.data.token_counts import unigram_cross_entropy
from dept.data_prep.files import read_texts
from dept.data_prep.mds import TokenShards

pytestmark = pytest.mark.end_to_end


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


def write_copies(root: Path) -> Path:
    """The corpus above, with near copies of it in another source, and left out."""
    write_corpus(root)
    texts = [text.upper() for text in sentences(3000, 10)[:200]] + sentences(300, 13)
    (root / "texts/fr.txt").write_text("\n\n".join(texts))
    yaml = (root / "mine.yaml").read_text()
    yaml = yaml.replace("sources:\n", "near_copies: {threshold: 0.7, words: 2}\nsources:\n", 1)
    yaml = yaml.replace("held_out:\n", "held_out:\n  fr: {files: texts/fr.txt}\n")
    (root / "mine.yaml").write_text(yaml)
    return root


def test_near_copies_are_left_out_whatever_happens_and_by_any_number_of_workers(tmp_path):
    wholly = write_copies(tmp_path / "whole")
    assert prepare(wholly, workers=1).returncode == 0
    kept = [t for p in wholly.glob("data/mine/fr/text/*/*.zst") for t in read_texts(p)]
    assert {*kept} <= {*sentences(300, 13)} and len(kept) > 280
    assert not (wholly / "data/mine/.gathered").exists()

    root = write_copies(tmp_path / "killed")
    data = root / "data/mine"
    for pattern in (".gathered/it/text/collected.json", "en/text/train/*.zst"):
        process = subprocess.Popen(
            command(root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=root
        )
        while process.poll() is None and not list(data.glob(pattern)):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (data / "corpus.json").exists()
    (root / "mine.yaml").write_text((root / "mine.yaml").read_text().replace("0.7", "0.8"))
    assert "near_copies.threshold was 0.7 and is 0.8; delete" in prepare(root).stderr
    (root / "mine.yaml").write_text((root / "mine.yaml").read_text().replace("0.8", "0.7"))
    again = prepare(root)
    assert again.returncode == 0, again.stderr
    assert tree(root / "tokenizers") == tree(wholly / "tokenizers")
    assert tree(root / "data") == tree(wholly / "data")


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


def test_a_finished_corpus_is_left_alone_and_a_changed_one_refused(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    again = prepare(whole)
    assert again.returncode == 0 and "nothing to do" in " ".join(again.stdout.split())
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


def test_found_sources_are_the_same_for_any_number_of_workers(tmp_path):
    trees = []
    for workers in (1, 2):
        root = tmp_path / str(workers)
        root.mkdir()
        for seed, alphabet in enumerate(("abcdefgh", "ijklmnop")):
            (root / f"{seed}.txt").write_text("\n\n".join(sentences(900, seed, alphabet)))
        (root / "mine.yaml").write_text(
            "corpus: mine\nsequence_length: 16\ntokenizers: {global: {vocab_size: 600}}\n"
            "sources: {p: {k: 2, files: '*.txt', method: unigram}}"
        )
        done = prepare(root, workers)
        assert done.returncode == 0, done.stderr
        trees.append(tree(root / "data/mine"))
        again = prepare(root, workers)
        assert "complete, nothing to do" in again.stdout
    different = {name for name in trees[0] if trees[0][name] != trees[1].get(name)}
    assert different <= {f"clusters/parts/0000{n}-00000.json" for n in range(2)}  # name the file
    corpus = read_corpus(tmp_path / "1", "mine")
    assert list(corpus.sources) == ["p0", "p1"]
    texts = [
        {
            t
            for split in ("train", "val")
            for part in (tmp_path / f"1/data/mine/{name}/text/{split}").glob("*.zst")
            for t in read_texts(part)
        }
        for name in corpus.sources
    ]
    assert texts[0] | texts[1] == {
        t for s, a in enumerate(("abcdefgh", "ijklmnop")) for t in sentences(900, s, a)
    }
    alphabets = [set("".join(of)) - set(". ") for of in texts]
    assert not alphabets[0] & alphabets[1]


def test_a_universal_tokenizer_knows_held_out_text_and_random_parts_take_a_prepared_corpus(whole):
    extended = "extends: mine.yaml\ncorpus: universal\ntokenizers: {global: {universal: true}}\n"
    parts = (
        "corpus: parts\nsequence_length: 32\n"
        "tokenizers: {global: {path: tokenizers/universal/global}}\n"
        "sources: {part: {k: 3, method: random, files: ['data/mine/en/text/*/*.jsonl.zst', "
        "'data/mine/it/text/*/*.jsonl.zst']}}\n"
    )
    for name, text in (("universal", extended), ("parts", parts)):
        (whole / f"{name}.yaml").write_text(text)
        script = str(REPOSITORY / "data_prep/prepare.py")
        arguments = [str(whole / f"{name}.yaml"), "--root", str(whole), "--workers", "1"]
        done = subprocess.run(
            [sys.executable, script, *arguments], capture_output=True, text=True, cwd=whole
        )
        assert done.returncode == 0, done.stderr
    mine, universal = (read_corpus(whole, name) for name in ("mine", "universal"))
    tokens = [corpus.source("el", "global").splits["val"].tokens for corpus in (mine, universal)]
    assert tokens[1] < tokens[0]
    for name in ("en", "it", "el"):  # the same text, split in the same way
        texts = [whole / "data" / corpus / name / "text" for corpus in ("mine", "universal")]
        assert all(tree(texts[0] / split) == tree(texts[1] / split) for split in ("train", "val"))
    corpus = read_corpus(whole, "parts")
    assert corpus.sources == ("part0", "part1", "part2")
    sizes = [corpus.source(name, "global").splits["train"].bytes for name in corpus.sources]
    assert max(sizes) < 1.15 * min(sizes)
