"""Stage 1: documents of a source -> parts of text, split into training and validation.

A part is a pair of files, `text/train/00007.jsonl.zst` and `text/val/00007.jsonl.zst` (absent when
empty), closed together once they hold `part_bytes`. `text/parts/00007.json`, written after both,
records their sizes and the position of the reader. A killed run resumes after the last such
record. `text/collected.json`, written last, has the totals.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dept.data.corpus import SPLITS
from dept.data_prep.corpus import Corpus, Source
from dept.data_prep.documents import open_source
from dept.data_prep.files import read_json, text_part, write_json
from dept.data_prep.pool import Task
from dept.data_prep.reader import Document, Reader
from dept.errors import DataError

SURVEY_BYTES = 8 * 10**6  # text from which the share of validation is computed
SURVEY_DOCUMENTS = 16  # at least this many, so more text if documents are long
BYTES_PER_TOKEN = 6  # for that estimate only
LARGEST_SHARE = 0.2  # of a small source, that val_samples may take


def document_draw(data: bytes) -> tuple[float, float]:
    """Two numbers in [0, 1) that depend on the document alone.

    The first determines its split, so a document that occurs twice, even in two sources, is never
    in both splits. The second determines whether tokenizers are trained on it.
    """
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return tuple(int.from_bytes(digest[i : i + 8], "big") / 2**64 for i in (0, 8))  # type: ignore


def validation_share(source: Source, draws: list[tuple[float, int]], sequence_length: int) -> float:
    """Share of documents to validate on: `val_fraction`, or more when that makes too few samples.

    Args:
        source: the source.
        draws: (first number of document_draw, bytes) of the documents at its start.
        sequence_length: tokens of a sample.

    Raises:
        DataError: the documents are too few or too large to be split.
    """
    if source.hub and source.hub.val_split:
        return 0.0
    total = sum(size for _, size in draws)
    share = source.split.val_fraction
    wanted = source.split.val_samples * sequence_length * BYTES_PER_TOKEN
    wanted = min(wanted, max(LARGEST_SHARE, share) * total)
    while (val := sum(size for draw, size in draws if draw < share)) < wanted:
        share = share * 1.05 + 0.001
    if not 0 < val < total:
        raise DataError(
            f"Source {source.name}: its {len(draws)} documents of {total:,} bytes cannot be split "
            "into training and validation: add more of them, or smaller ones (`document: line`)."
        )
    return share


def _survey(
    source: Source, reader: Reader, stream: Iterator[Document]
) -> list[tuple[Document, Any, int]]:
    """The first documents of a source, with the position after each and bad ones skipped so far.

    The share of validation is computed from them before anything is written. They come from the
    same stream as the rest, so a source is read once.
    """
    documents = []
    total = 0
    for document in stream:
        documents.append((document, reader.position(), reader.skipped))
        total += len(document.data)
        if total >= SURVEY_BYTES and len(documents) >= SURVEY_DOCUMENTS:
            break
    if not documents:
        raise DataError(f"Source {source.name}: {reader.nothing()}; correct the source.")
    return documents


def collect(
    task: Task,
    corpus: Corpus,
    source: Source,
    directory: Path,
    folders: tuple[Path, ...],
    cache: Path,
) -> dict[str, Any]:
    """Writes the text parts of a source, from where an earlier run stopped.

    Args:
        task: reports progress, in bytes read.
        corpus: the corpus.
        source: the source.
        directory: of the source.
        folders: where relative paths are looked for.
        cache: folder of packages.

    Returns:
        The content of collected.json, which is written last: per split `documents`, `bytes` and
        `parts` (numbers), and `val_fraction`, `skipped` (bad documents), `unused` (beyond the size
        limits).
    """
    records: list[dict[str, Any]] = []
    while record := read_json(directory / f"text/parts/{len(records):05}.json"):
        records.append(record)
    last = records[-1] if records else {"position": None, "skipped": 0, "unused": 0, "ended": False}
    reader = open_source(source, folders, cache, last["position"])
    stream = iter(reader)
    survey = collections.deque([] if records else _survey(source, reader, stream))
    if records:
        share = records[0]["val_fraction"]
    else:
        draws = [(document_draw(d.data)[0], len(d.data)) for d, _, _ in survey]
        share = validation_share(source, draws, corpus.sequence_length)
    limits = {"train": source.split.train_bytes, "val": source.split.val_bytes}
    taken = {s: sum(r[s]["bytes"] for r in records) for s in SPLITS}
    unused, ended = last["unused"], last["ended"]
    while not ended:
        number = len(records)
        with ExitStack() as open_parts:
            parts = {
                s: open_parts.enter_context(text_part(part_path(directory, s, number)))
                for s in SPLITS
            }
            while sum(part.bytes for part in parts.values()) < corpus.part_bytes:
                if survey:
                    document, position, skipped = survey.popleft()
                else:
                    document, position, skipped = next(stream, None), None, reader.skipped
                if document is None:
                    ended = True
                    break
                size = len(document.data)
                is_val = document_draw(document.data)[0] < share
                split = document.split or ("val" if is_val else "train")
                if limits[split] is not None and taken[split] + size > limits[split]:
                    unused += 1
                    if split == "train":
                        ended = True
                        break
                    continue
                parts[split].write(document.text, size)
                taken[split] += size
                task.advance(reader.consumed())
        record = {s: {"documents": p.documents, "bytes": p.bytes} for s, p in parts.items()}
        record |= {
            "val_fraction": share,
            "position": position or reader.position(),
            "skipped": last["skipped"] + skipped,
            "unused": unused,
            "ended": ended,
        }
        write_json(directory / f"text/parts/{number:05}.json", record)
        records.append(record)
    summary: dict[str, Any] = {}
    for split in SPLITS:
        found = [(number, r[split]) for number, r in enumerate(records) if r[split]["documents"]]
        if not found:
            raise DataError(
                f"Source {source.name} has no text for {split}: add more documents, "
                "or correct its split."
            )
        summary[split] = {
            "documents": sum(part["documents"] for _, part in found),
            "bytes": sum(part["bytes"] for _, part in found),
            "parts": [number for number, _ in found],
        }
    summary |= {k: records[-1][k] for k in ("val_fraction", "skipped", "unused")}
    write_json(directory / "text" / "collected.json", summary)
    task.advance(reader.consumed(), last=True)
    return summary


def part_path(source: Path, split: str, part: int) -> Path:
    """A text part of a source.

    Args:
        source: directory of the source.
        split: ``train`` or ``val``.
        part: number of the part.
    """
    return source / "text" / split / f"{part:05}.jsonl.zst"
