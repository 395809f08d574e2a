"""Rows of `make bench` about preparation: text to shards, and its stages."""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measure import REPOSITORY, Result, Row, Size, Spent, alternate, run, speed

SOURCES = 8  # of the corpus that is made
FILES = 3  # a source
LENGTH = 128  # tokens of a sample
VOCABULARY = 8192
WORKERS = 2
BATCH = 1 << 20  # characters that are tokenized at once

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


def texts() -> Iterator[str]:
    """Training documents of all prepared corpora, source after source."""
    from dept.data_prep.files import read_texts

    for part in sorted((REPOSITORY / "data").glob("*/*/text/train/*.jsonl.zst")):
        yield from read_texts(part)


def documents(megabytes: float, skip: int = 0) -> Iterator[str]:
    """Prepared documents, from the first again after the last.

    Args:
        megabytes: how much, in MB of UTF-8.
        skip: documents to leave out at first.
    """
    size = 0
    for text in itertools.islice(itertools.cycle(texts()), skip, None):
        yield text
        size += len(text.encode())
        if size >= megabytes * 1e6:
            return


def write_text(folder: Path, megabytes: float) -> None:
    """Write a folder of text files for each source.

    Each source begins at another document, so that sources differ as far as there is text.

    Args:
        folder: folder of the folders.
        megabytes: size of all together, in MB.
    """
    each = megabytes / SOURCES
    count = sum(1 for _ in texts())
    for number in range(SOURCES):
        directory = folder / f"source{number}"
        directory.mkdir(parents=True)
        found = documents(each, skip=number * count // SOURCES)
        for file in range(FILES):
            size = 0
            with open(directory / f"{file}.txt", "w") as stream:
                for text in found:
                    stream.write(text.strip() + "\n\n")
                    size += len(text.encode())
                    if size >= each * 1e6 / FILES and file < FILES - 1:
                        break


def tokenizer() -> Path:
    """The global tokenizer of the prepared corpus that has most text."""
    return REPOSITORY / "tokenizers" / "multidomain" / "global"


def text_to_mds(size: Size) -> list[Result]:
    """Both commands from the same text files to shards, with a given tokenizer.

    Args:
        size: how much is measured.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_text(folder / "text", size.megabytes)
        given = tokenizer()
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

        mine, theirs = alternate(ours, against, times=size.times)
    found = speed(mine, theirs, "whole commands")
    found[0].raw["stages"] = stages
    return found + speed(mine, inner, "without the imports of llm-foundry")


ROWS = [
    Row(
        "text-to-mds",
        "text to MDS shards with a given tokenizer, two processes",
        "llm-foundry's convert_text_to_mds with two processes",
        ">= 4",
        text_to_mds,
    ),
]
