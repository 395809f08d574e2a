"""Near copies, held against the exact Jaccard index of all pairs of documents."""

import functools
import json
import random

import numpy as np
import pytest

from dept.data_prep.collect import collect
from dept.data_prep.corpus import NearCopyOptions
from dept.data_prep.corpus_yaml import load_corpus
from dept.data_prep.embedded.clean import runs
from dept.data_prep.files import read_texts
from dept.data_prep.near_copies import (
    near_copies,
    rows_of_a_band,
    sketch,
    without_near_copies,
)
from dept.data_prep.pool import Task
from dept.errors import DataError

pytest.importorskip("rensa")
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


class Quiet(Task):
    def report(self, size):
        pass


class Inline:
    """A pool that runs its tasks here."""

    def run(self, title, function, arguments, total):
        return [function(Quiet(), *each) for each in arguments]


runs_of = functools.cache(runs)


def resemblance(one, other):
    a, b = runs_of(one), runs_of(other)
    return len(a & b) / len(a | b)


def made_up(draw, words=200):
    return [draw.choice(WORDS) for _ in range(words)]


def altered(draw, words, share):
    """The words with a share of them changed, in one stretch."""
    start = draw.randrange(len(words))
    count = round(share * len(words))
    return words[:start] + made_up(draw, count) + words[start + count :]


def family(seed, count=60):
    """Documents of which many resemble others, from hardly to wholly."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        words = made_up(draw)
        texts += [" ".join(altered(draw, words, draw.random() ** 2)) for _ in range(4)]
    draw.shuffle(texts)
    return texts


def sketches_of(folder, texts):
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return sketch(Quiet(), folder / "a.jsonl", 5)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_what_is_left_out_resembles_what_is_kept(tmp_path, threshold):
    texts = family(1)
    is_copy = near_copies(sketches_of(tmp_path, texts), threshold)
    assert 10 < is_copy.sum() < 150
    kept = []
    for text, left_out in zip(texts, is_copy, strict=True):
        nearest = max((resemblance(text, other) for other in kept), default=0)
        if left_out:
            assert nearest > threshold - 0.2
        else:
            assert nearest < threshold + 0.2
            kept.append(text)


def test_sketches_estimate_the_resemblance(tmp_path):
    texts = family(2, 30)
    sketches = sketches_of(tmp_path, texts)
    errors = [
        (sketches[i] == sketches[j]).mean() - resemblance(texts[i], texts[j])
        for i in range(len(texts))
        for j in range(i)
        if resemblance(texts[i], texts[j]) > 0
    ]
    assert len(errors) > 30
    assert abs(np.mean(errors)) < 0.03 and np.std(errors) < 0.06


def test_the_first_of_equal_documents_is_kept_and_copies_of_copies_stay(tmp_path):
    draw = random.Random(3)
    words = made_up(draw)
    further = altered(draw, words, 0.3)
    texts = [" ".join(w) for w in (words, words, made_up(draw), further, words)]
    is_copy = near_copies(sketches_of(tmp_path, texts), 0.9)
    assert is_copy.tolist() == [False, True, False, False, True]
    assert near_copies(np.zeros((0, 128), np.uint32), 0.8).tolist() == []


def test_documents_with_a_number_in_common_by_chance_are_no_copies():
    draw = np.random.default_rng(0)
    sketches = draw.integers(0, 3, (300, 128), dtype=np.uint32)  # bands agree often, all never
    assert not near_copies(sketches, 0.8).any()


def test_bands_find_nearly_all_pairs_at_the_threshold():
    assert [rows_of_a_band(t) for t in (0.1, 0.5, 0.8, 0.95, 1.0)] == [1, 2, 4, 16, 32]


# Corpora


def corpus_of(root, texts, options="{}"):
    for name, lines in texts.items():
        (root / f"{name}.txt").write_text("\n".join(lines))
    source = "  {0}: {{files: {0}.txt, document: line, split: {{val_fraction: 0.3}}}}\n".format
    (root / "c.yaml").write_text(
        f"corpus: c\nsequence_length: 8\nsplit: {{val_samples: 1}}\nnear_copies: {options}\n"
        "sources:\n"
        + "".join(source(n) for n in texts if n != "held")
        + "held_out:\n"
        + "".join(source(n) for n in texts if n == "held")
    )
    return load_corpus(root / "c.yaml")


def run(root, corpus):
    sources = corpus.sources + corpus.held_out
    for source in sources:
        folder = root / "gathered" / source.name
        collect(Quiet(), corpus, source, folder, (root,), root)
    names = [source.name for source in sources]
    without_near_copies(Inline(), names, root / "gathered", root / "out", corpus.near_copies)
    return {
        (name, split): [
            t for p in sorted(root.glob(f"out/{name}/text/{split}/*")) for t in read_texts(p)
        ]
        for name in names
        for split in ("val", "train")
    }


def test_copies_are_found_across_sources_and_splits_and_counted(tmp_path):
    draw = random.Random(4)
    own = {name: [" ".join(made_up(draw)) for _ in range(40)] for name in ("a", "b", "held")}
    near = [" ".join(altered(draw, text.split(), 0.02)) for text in own["a"][:20]]
    texts = {
        "a": [*own["a"], *near[:5]],
        "b": [*near[5:10], *own["b"]],
        "held": [*near, *own["held"]],
    }
    corpus = corpus_of(tmp_path, texts)
    assert corpus.near_copies == NearCopyOptions(threshold=0.8, words=5)
    left = run(tmp_path, corpus)
    everything = [text for texts in left.values() for text in texts]
    assert len(everything) == 120 == len({*everything})
    pairs = [(x, y) for i, x in enumerate(everything) for y in everything[:i]]
    assert max(resemblance(x, y) for x, y in pairs) < 0.6
    assert {*left["held", "val"], *left["held", "train"]} == {*own["held"]}
    assert {*left["b", "val"], *left["b", "train"]} == {*own["b"]}
    for name, dropped in (("a", 5), ("b", 5), ("held", 20)):
        summary = json.loads((tmp_path / f"out/{name}/text/collected.json").read_text())
        assert summary["near_copies"] == dropped
        for split in ("train", "val"):
            sizes = [len(text.encode()) for text in left[name, split]]
            assert summary[split] == {"documents": len(sizes), "bytes": sum(sizes), "parts": [0]}
            whole = read_texts(tmp_path / f"gathered/{name}/text/{split}/00000.jsonl.zst")
            assert [t for t in whole if t in {*left[name, split]}] == left[name, split]  # in order


def test_translations_are_no_copies(tmp_path):
    draw = random.Random(5)
    english = [" ".join(made_up(draw, 60)) for _ in range(30)]
    other = str.maketrans("abdefgiklmnorstu", "αβδεφγικλμνορστυ")
    texts = {"en": english, "el": [text.translate(other) for text in english]}
    left = run(tmp_path, corpus_of(tmp_path, texts))
    assert sum(map(len, left.values())) == 60


def test_a_source_of_copies_alone_is_named(tmp_path):
    draw = random.Random(6)
    texts = [" ".join(made_up(draw, 60)) for _ in range(30)]
    with pytest.raises(
        DataError, match=r"Source b: all its text for \w+ is in other sources: raise"
    ):
        run(tmp_path, corpus_of(tmp_path, {"a": texts, "b": texts}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{threshold: 2}", r"near_copies\.threshold is 2: write a number from 0 to 1"),
        ("{threshold: 0}", r"near_copies\.threshold is 0: write more"),
        ("{words: 0}", r"near_copies\.words is 0: write a positive whole number"),
        ("{word: 3}", "near_copies has the unknown key 'word'"),
    ],
)
def test_mistakes_in_the_options_are_named(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        corpus_of(tmp_path, {"a": ["x"]}, options)
