"""Make a corpus of random tokens in seconds: shards and tokenizers as data preparation writes them.

Speed and memory do not depend on what the tokens say. Their frequencies follow Zipf's law, each
source over ids of its own, so that trimmed vocabularies differ between sources.
"""

import json
from pathlib import Path

import numpy as np

from dept.data.corpus import GLOBAL, SPLITS
from dept.data.tokenizer_files import tokenizer_hash
from dept.data_prep.files import write_json
from dept.data_prep.mds import TokenShards
from dept.data_prep.shards import finish, token_dtype

SOURCES = ("a", "b", "c", "d")
SPECIALS = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
HELD = 0.9  # of the vocabulary, by a source


def make(root: Path, name: str, *, length: int, vocabulary: int, train: int, val: int) -> None:
    """Write the corpus ``name`` below ``root``.

    Args:
        root: directory of ``data/`` and ``tokenizers/``.
        name: name of the corpus.
        length: tokens of a sample.
        vocabulary: ids of each tokenizer.
        train: training samples of a source.
        val: validation samples of a source.
    """
    tokenizers = {n: _tokenizer(root, name, n, vocabulary) for n in (GLOBAL, *SOURCES)}
    for seed, source in enumerate(SOURCES):
        for tokenizer in (GLOBAL, source):
            directory = root / "data" / name / source / tokenizer
            generator = np.random.default_rng(seed)
            for split, samples in (("train", train), ("val", val)):
                _part(directory / split / "00000", generator, samples, length, vocabulary)
            facts = {**tokenizers[tokenizer], "name": tokenizer}
            finish(directory, source, facts, length, {split: ["00000"] for split in SPLITS})
    keys = ("path", "hash", "vocab_size")
    write_json(
        root / "data" / name / "corpus.json",
        {
            "corpus": name,
            "sequence_length": length,
            "sources": list(SOURCES),
            "held_out": [],
            "tokenizers": {n: {k: t[k] for k in keys} for n, t in tokenizers.items()},
        },
    )


def _tokenizer(root: Path, corpus: str, name: str, vocabulary: int) -> dict:
    from tokenizers import Tokenizer, models

    path = Path("tokenizers", corpus, name)
    (root / path).mkdir(parents=True, exist_ok=True)
    words = [*SPECIALS.values(), *(f"{name}{i}" for i in range(vocabulary - len(SPECIALS)))]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIALS["unk_token"]))
    tokenizer.add_special_tokens(list(SPECIALS.values()))
    tokenizer.save(str(root / path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIALS}
    (root / path / "tokenizer_config.json").write_text(json.dumps(config))
    special = list(range(len(SPECIALS)))
    return {
        "path": path.as_posix(),
        "hash": tokenizer_hash(root / path),
        "vocab_size": vocabulary,
        "special_ids": special,
    }


def _part(
    directory: Path, generator: np.random.Generator, samples: int, length: int, vocabulary: int
) -> None:
    ids = generator.permutation(vocabulary)[: int(vocabulary * HELD)]
    chances = 1 / np.arange(10, 10 + len(ids))
    tokens = generator.choice(ids, (samples, length), p=chances / chances.sum())
    shards = TokenShards(directory, length, token_dtype(vocabulary))
    shards.write(tokens)
    shards.close()
    np.save(directory / "counts.npy", np.bincount(tokens.ravel(), minlength=vocabulary))
    sizes = {"documents": samples, "bytes": 4 * tokens.size, "tokens": tokens.size}
    write_json(directory / "part.json", {**sizes, "samples": samples, "dropped_tokens": 0})
