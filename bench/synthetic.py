"""A prepared corpus of random tokens, for rows whose vocabularies no text here is large enough for.

Shards are written by Streaming's own writer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]


def write_corpus(
    root: str, name: str, sources: int, length: int, samples: int, vocabularies: Mapping[str, int]
) -> None:
    """Write `data/` and `tokenizers/` of a corpus.

    Args:
        root: folder of both.
        name: name of the corpus.
        sources: number of sources, which are called `s0`, `s1`, ...
        length: tokens of a sample.
        samples: samples of each training split; validation has two.
        vocabularies: ids of the tokenizer `global`, and of those of sources that have their own.
    """
    folder = Path(root)
    names = [f"s{number}" for number in range(sources)]
    tokenizers = {}
    for tokenizer, size in vocabularies.items():
        directory = folder / "tokenizers" / name / tokenizer
        _write_tokenizer(directory, size)
        digest = hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
        path = f"tokenizers/{name}/{tokenizer}"
        tokenizers[tokenizer] = {"path": path, "hash": digest, "vocab_size": size}
    for number, source in enumerate(names):
        for tokenizer in {"global", source} & tokenizers.keys():
            facts = {"name": tokenizer, "hash": tokenizers[tokenizer]["hash"]}
            draw = np.random.default_rng([number, tokenizer == "global"])
            size = vocabularies[tokenizer]
            directory = folder / "data" / name / source / tokenizer
            _write_source(directory, facts, size, draw, samples, length)
    (folder / "data" / name / "corpus.json").write_text(
        json.dumps(
            {
                "corpus": name,
                "sequence_length": length,
                "sources": names,
                "held_out": [],
                "tokenizers": tokenizers,
            }
        )
    )


def _write_tokenizer(directory: Path, size: int) -> None:
    """A tokenizer of `size` words, the first of which are special."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    words = [*SPECIALS, *(f"w{number}" for number in range(size - len(SPECIALS)))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIALS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIALS])
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIALS, strict=True))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def _write_source(
    directory: Path,
    facts: Mapping[str, str],
    size: int,
    draw: np.random.Generator,
    samples: int,
    length: int,
) -> None:
    """Both splits in one tokenizer; every id occurs in training, so that `|V_k|` is all ids."""
    from streaming import MDSWriter

    dtype = "uint16" if size <= 1 << 16 else "uint32"
    splits, digests = {}, {}
    for split, count in (("train", max(samples, -(-size // length))), ("val", 2)):
        tokens = draw.integers(0, size, (count, length), dtype)
        if split == "train":
            tokens.reshape(-1)[:size] = draw.permutation(size)
            counts = np.bincount(tokens.reshape(-1), minlength=size).astype(np.int64)
        columns = {"tokens": f"ndarray:{dtype}:{length}"}
        with MDSWriter(out=str(directory / split), columns=columns, hashes=["xxh64"]) as writer:
            for sample in tokens:
                writer.write({"tokens": sample})
        digests[split] = hashlib.sha256((directory / split / "index.json").read_bytes()).hexdigest()
        splits[split] = {
            "documents": count,
            "bytes": tokens.size,
            "tokens": tokens.size,
            "samples": count,
            "dropped_tokens": 0,
        }
    np.save(directory / "counts.npy", counts)
    stats = {
        "source": directory.parent.name,
        "tokenizer": {**facts, "special_ids": list(range(len(SPECIALS)))},
        "vocab_size": size,
        "local_vocab_size": size,
        "sequence_length": length,
        "dtype": dtype,
        "splits": splits,
        "unigram_ce": float(np.log(size)),
        "index_sha256": digests,
    }
    (directory / "stats.json").write_text(json.dumps(stats))
