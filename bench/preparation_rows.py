"""Rows of `make bench` about preparation: text to shards, and its stages."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measure import Result, Row, Setting, Spent, alternate, ratios, run
from tokenizers import Tokenizer

from dept.data_prep import shards
from dept.data_prep.collect import part_path
from dept.data_prep.corpus import TokenizerOptions
from dept.data_prep.files import read_texts, text_part
from dept.data_prep.pool import Task
from dept.data_prep.train_tokenizer import count_words, describe_tokenizer, train_tokenizer
from dept.errors import DataError

SOURCES = 8  # of the corpus that is made
FILES = 3  # a source
LENGTH = 128  # tokens of a sample
VOCABULARY = 8192
WORKERS = 2

# llm-foundry's converter, which prints its own seconds, without those of its imports.
CONVERT = """
import os, sys, time
from llmfoundry.command_utils import convert_text_to_mds
text, tokenizer, out, length, processes = sys.argv[1:]
began, cpu = time.perf_counter(), sum(os.times()[:4])
convert_text_to_mds(
    tokenizer_name=tokenizer, output_folder=out, input_folder=text, concat_tokens=int(length),
    eos_text="</s>", bos_text="", no_wrap=False, compression="", processes=int(processes),
    args_str="", reprocess=True, trust_remote_code=False)
print(time.perf_counter() - began, sum(os.times()[:4]) - cpu)
"""


def parts(root: Path) -> list[Path]:
    """Parts of training text of all prepared corpora.

    Args:
        root: folder of `data/`.

    Raises:
        DataError: nothing is prepared.
    """
    found = sorted((root / "data").glob("*/*/text/train/*.jsonl.zst"))
    if not found:
        raise DataError(f"{root / 'data'} has no prepared text: make it with `make data`")
    return found


def documents(root: Path, megabytes: float, skip: int = 0) -> Iterator[str]:
    """Prepared documents, from the first one again after the last one.

    Args:
        root: folder of `data/`.
        megabytes: how much, in MB of UTF-8.
        skip: documents to leave out at first.
    """
    every = itertools.chain.from_iterable(map(read_texts, itertools.cycle(parts(root))))
    size = 0
    for text in itertools.islice(every, skip, None):
        yield text
        size += len(text.encode())
        if size >= megabytes * 1e6:
            return


def write_text(root: Path, folder: Path, megabytes: float) -> None:
    """Write a folder of text files for each source.

    Each source begins at another document, so that sources differ as far as there is text.

    Args:
        root: folder of `data/`.
        folder: folder of the folders.
        megabytes: size of all together, in MB.
    """
    each = megabytes / SOURCES
    count = sum(1 for part in parts(root) for _ in read_texts(part))
    for number in range(SOURCES):
        directory = folder / f"source{number}"
        directory.mkdir(parents=True)
        found = documents(root, each, skip=number * count // SOURCES)
        for file in range(FILES):
            size = 0
            with open(directory / f"{file}.txt", "w") as stream:
                for text in found:
                    stream.write(text.strip() + "\n\n")
                    size += len(text.encode())
                    if size >= each * 1e6 / FILES and file < FILES - 1:
                        break


def tokenizer(root: Path) -> Path:
    """A global tokenizer of a prepared corpus.

    Args:
        root: folder of `tokenizers/`.
    """
    return sorted((root / "tokenizers").glob("*/global"))[0]


def text_to_mds(setting: Setting) -> list[Result]:
    """Both commands from the same text files to shards, with a given tokenizer.

    Args:
        setting: what is measured on.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_text(setting.root, folder / "text", setting.megabytes)
        given = tokenizer(setting.root)
        (folder / "bench.yaml").write_text(
            f"corpus: bench\nsequence_length: {LENGTH}\n"
            f"split: {{val_samples: 20}}\n"
            f"tokenizers: {{global: {{path: {given}}}, own: null}}\nsources:\n"
            + "".join(f"  s{n}: {{files: text/source{n}/*.txt}}\n" for n in range(SOURCES))
        )
        number = itertools.count()
        inner: list[Spent] = []
        stages: list[list[str]] = []

        def ours() -> Spent:
            root = folder / f"ours{next(number)}"
            command = [sys.executable, "data_prep/prepare.py", str(folder / "bench.yaml")]
            done, spent = run([*command, "--workers", str(WORKERS), "--root", str(root)])
            stages.append([line for line in done.splitlines() if line[:2] in ("1/", "2/", "3/")])
            return spent

        def against() -> Spent:
            out = folder / f"against{next(number)}"
            arguments = (folder / "text", given, out, LENGTH, WORKERS)
            done, spent = run([sys.executable, "-c", CONVERT, *map(str, arguments)])
            inner.append(Spent(*map(float, done.split()[-2:])))
            return spent

        mine, theirs = alternate(ours, against, times=setting.times)
    found = ratios(theirs, mine, "whole commands")
    found[0].raw["stages"] = stages
    return found + ratios(inner, mine, "without the imports of llm-foundry")


class Quiet(Task):
    """A task whose progress nobody watches."""

    def report(self, size: int) -> None:
        """Forget it."""


def timed(function: Callable[[], Any]) -> Spent:
    """What a call in this process spends.

    Args:
        function: what is called.
    """
    began, cpu = time.perf_counter(), time.process_time()
    function()
    return Spent(time.perf_counter() - began, time.process_time() - cpu)


def tokenize(setting: Setting) -> list[Result]:
    """The tokenize stage on parts of text, against the tokenizer alone on the same documents.

    Args:
        setting: what is measured on.
    """
    from dept.checkpoint import library_patches

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in preparation
    directory = tokenizer(setting.root)
    facts = {"path": directory, **describe_tokenizer(directory, TokenizerOptions())}
    limit = 0.2 if setting.small else min(setting.megabytes, 10.0)
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "data", "bench", "source")
        write_part_of(source, documents(setting.root, limit))
        part = part_path(source, "train", 0)
        batches = [[]]
        for text in read_texts(part):
            batches[-1].append(text)
            if sum(map(len, batches[-1])) >= shards.BATCH_BYTES:
                batches.append([])
        number = itertools.count()

        def ours() -> Spent:
            target = source / "global" / "train" / f"{next(number):05}"
            return timed(lambda: shards.write_part(Quiet(), [part], facts, LENGTH, target))

        def raw(words: int | None) -> Spent:
            encoder = Tokenizer.from_file(str(directory / "tokenizer.json"))
            if words:
                library_patches.remember_words(encoder, words)

            def encode() -> None:
                for batch in batches:
                    encoder.encode_batch_fast(batch, add_special_tokens=False)

            return timed(encode)

        mine, same, default = alternate(
            ours, lambda: raw(shards.CACHED_WORDS), lambda: raw(None), times=setting.times
        )
    return [
        *ratios(same, mine, "the same cache of words"),
        *ratios(default, mine, "the library's default cache"),
    ]


def write_part_of(source: Path, texts: Iterator[str]) -> int:
    """Write a part of training text, as the first stage does.

    Args:
        source: directory of the source.
        texts: documents.

    Returns:
        Bytes of the documents.
    """
    target = part_path(source, "train", 0)
    target.parent.mkdir(parents=True)
    with text_part(target) as part:
        for text in texts:
            part.write(text, len(text.encode()))
    return part.bytes


def train(setting: Setting) -> list[Result]:
    """Counting words and training a tokenizer, against sentencepiece on lines of the same text.

    Args:
        setting: what is measured on.
    """
    import sentencepiece

    limit = 0.3 if setting.small else min(setting.megabytes / 4, 50.0)
    vocabulary = 500 if setting.small else VOCABULARY
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "source")
        size = write_part_of(source, documents(setting.root, limit))
        summary = {"train": {"bytes": size, "parts": [0]}}
        lines = Path(place, "lines.txt")
        with open(lines, "w") as stream:
            for text in read_texts(part_path(source, "train", 0)):
                stream.writelines(f"{line}\n" for line in text.splitlines() if line.strip())
        number = itertools.count()

        def ours() -> Spent:
            target = Path(place, "tokenizers", str(next(number)))
            options = TokenizerOptions(vocab_size=vocabulary)
            of = {"source": {"path": source, "bytes": size}}

            def both() -> None:
                count_words(Quiet(), source, summary, size)
                train_tokenizer(Quiet(), target, options, of)

            return timed(both)

        def direct() -> Spent:
            return timed(
                lambda: sentencepiece.SentencePieceTrainer.train(
                    input=str(lines),
                    model_prefix=f"{place}/direct",
                    model_type="unigram",
                    vocab_size=vocabulary,
                    byte_fallback=True,
                    character_coverage=0.9995,
                    normalization_rule_name="identity",
                    max_sentence_length=1 << 20,
                    num_threads=1,
                    minloglevel=2,
                )
            )

        mine, theirs = alternate(ours, direct, times=setting.times)
    return ratios(theirs, mine)


ROWS = [
    Row(
        "text-to-mds",
        "text to MDS shards with a given tokenizer, two processes",
        "llm-foundry's convert_text_to_mds with two processes",
        ">= 4",
        text_to_mds,
    ),
    Row(
        "tokenize",
        "the tokenize stage, one process, at most 10 MB of text",
        "encode_batch_fast on the same documents",
        ">= 0.9",
        tokenize,
    ),
    Row(
        "train-tokenizer",
        "training a tokenizer on a quarter of the text, at most 50 MB",
        "sentencepiece on the same text",
        ">= 0.9",
        train,
    ),
]
