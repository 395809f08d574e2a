"""A universal tokenizer weighs all sources alike, and a corpus yaml may extend another one."""

import json
from collections import Counter
from pathlib import Path

import pytest
import regex
import zstandard
from made_up_text import sentences

from dept.data_prep.corpus import TokenizerOptions
from dept.data_prep.corpus_yaml import load_corpus
from dept.data_prep.pool import Task
from dept.data_prep.train_tokenizer import count_words, weighted_words
from dept.errors import DataError

CORPORA = Path(__file__).parents[2] / "data_prep" / "corpora"
ALPHABETS = {"large": "abcdefgh", "middle": "ijklmnop", "small": "αβγδεζηθ"}
DOCUMENTS = {"large": 1600, "middle": 400, "small": 100}


class Quiet(Task):
    """A task that nobody watches."""

    def report(self, size):
        pass


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three sources of different sizes and letters, whose words are counted in at most 60 kB."""
    found = {}
    for seed, (name, alphabet) in enumerate(ALPHABETS.items()):
        folder = tmp_path_factory.mktemp("words") / name
        (folder / "text/train").mkdir(parents=True)
        texts = sentences(DOCUMENTS[name], seed, alphabet)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        (folder / "text/train/00000.jsonl.zst").write_bytes(zstandard.compress(lines))
        size = sum(len(text.encode()) for text in texts)
        count_words(Quiet(), folder, {"train": {"bytes": size, "parts": [0]}}, 60_000)
        found[name] = {"path": folder, "bytes": size}
    return found


def bytes_by_alphabet(words):
    """Bytes of the words of each alphabet, by their counts."""
    found = Counter()
    for word, count in words.items():
        for name, alphabet in ALPHABETS.items():
            if regex.search(f"[{alphabet}]", word):
                found[name] += count * len(word.encode())
    return found


@pytest.mark.parametrize(
    ("options", "power"),
    [
        (TokenizerOptions(universal=True), 0.0),
        (TokenizerOptions(universal=True, temperature=1.0), 0.0),
        (TokenizerOptions(temperature=0.0), 0.0),
        (TokenizerOptions(), 0.3),
        (TokenizerOptions(temperature=1.0), 1.0),
    ],
)
def test_a_source_weighs_its_size_to_a_power_and_in_a_universal_tokenizer_all_weigh_alike(
    sources, options, power
):
    _, weighted = weighted_words(options, sources)
    found = bytes_by_alphabet(weighted)
    assert sources["large"]["bytes"] > 8 * sources["small"]["bytes"]
    for name in ALPHABETS:
        expected = (sources[name]["bytes"] / sources["large"]["bytes"]) ** power
        assert found[name] / found["large"] == pytest.approx(expected, rel=0.02)


def written(folder, text, name="mine.yaml"):
    path = folder / name
    path.write_text(text)
    return path


BASE = """
corpus: base
sequence_length: 64
tokenizers: {global: {vocab_size: 700}, own: {vocab_size: 600}}
sources:
  en: {files: en.txt, split: {val_samples: 9}}
  it: {files: it.txt}
"""


def test_a_corpus_differs_from_the_one_that_it_extends_in_what_it_says(tmp_path):
    written(tmp_path, BASE, "base.yaml")
    base = load_corpus(tmp_path / "base.yaml")
    text = "extends: base.yaml\ncorpus: mine\ntokenizers: {global: {universal: true}}\n"
    mine = load_corpus(written(tmp_path, f"{text}sources: {{en: {{split: {{val_samples: 7}}}}}}"))
    assert (mine.corpus, base.corpus) == ("mine", "base")
    assert mine.sequence_length == 64 and mine.own_tokenizer == base.own_tokenizer
    assert mine.global_tokenizer == TokenizerOptions(vocab_size=700, universal=True)
    assert [source.split.val_samples for source in mine.sources] == [7, 64]
    assert mine.sources[1] == base.sources[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: nowhere.yaml\ncorpus: mine", "nowhere.yaml cannot be read"),
        ("extends: [base.yaml]\ncorpus: mine", "extends is .*: name one corpus yaml"),
        ("extends: second.yaml\ncorpus: mine", "which extends another one: name that one"),
        ("extends: base.yaml\ntokenizers: {global: {universal: 1}}", "universal is 1: write true"),
        ("extends: base.yaml\ntokenizers: {own: {universal: true}}", "it is for tokenizers.global"),
        (
            "extends: base.yaml\nsources: {it: {tokenizer: {universal: true}}}",
            "it.tokenizer.universal: it is for tokenizers.global",
        ),
        (
            "extends: base.yaml\ntokenizers: {global: {universal: true, path: x}}",
            "a tokenizer from elsewhere is not trained",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, text, message):
    written(tmp_path, BASE, "base.yaml")
    written(tmp_path, "extends: base.yaml", "second.yaml")
    with pytest.raises(DataError, match=message):
        load_corpus(written(tmp_path, text))


def test_recipes_of_data_made_before_the_option_stay_as_they_were(tmp_path):
    recipe = load_corpus(written(tmp_path, BASE)).recipe()
    assert "universal" not in json.dumps(recipe)
    text = BASE.replace("vocab_size: 700", "vocab_size: 700, universal: true")
    assert load_corpus(written(tmp_path, text)).recipe()["global_tokenizer"]["universal"] is True


def test_the_universal_languages_are_the_languages():
    base, universal = (
        load_corpus(CORPORA / f"languages{name}.yaml") for name in ("", "_universal")
    )
    assert universal.corpus == "languages_universal" and universal.global_tokenizer.universal
    assert universal.sources == base.sources and universal.held_out == base.held_out
    assert universal.split == base.split and universal.near_copies == base.near_copies


def test_random_languages_are_made_of_the_text_of_all_training_languages():
    base, random = (load_corpus(CORPORA / f"languages{name}.yaml") for name in ("", "_iid"))
    assert random.cluster.method == "random" and random.cluster.k == len(base.sources)
    assert random.sequence_length == base.sequence_length
    assert set(random.sources[0].files) == {
        f"data/languages/{source.name}/text/{split}/*.jsonl.zst"
        for source in base.sources
        for split in ("train", "val")
    }
