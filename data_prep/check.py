"""Verifies a prepared corpus completely, and reports every fault.

    python data_prep/check.py multilingual [--root .] [--workers N]

Every shard is read: its size and hashes against the index, its layout, its tokens against the
vocabulary. counts.npy and stats.json are recomputed from the tokens, and tokenizers are compared
with the hashes that the corpus was made with. The exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dept.data.corpus import GLOBAL, SPLITS, PreparedSource, described, make_again, read_source
from dept.data.shard_files import SplitIndex, fault, read_index, remake, tokens
from dept.data.token_counts import count_tokens, local_vocabulary, unigram_cross_entropy
from dept.data.tokenizer_files import tokenizer_fault
from dept.data_prep.files import read_json
from dept.data_prep.pool import Task, Workers
from dept.errors import DataError
from dept.log import log


@dataclass
class SplitReport:
    """The result of checking all shards of a split.

    Attributes:
        faults: a sentence for each fault.
        counts: int64[vocab_size], counts of tokens.
        samples: number of samples in the shards without fault.
        shards: number of shards.
        unhashed: number of shards whose index has no hash.
    """

    faults: list[str]
    counts: np.ndarray  # of every token of the shards without fault
    samples: int
    shards: int
    unhashed: int


def check_split(task: Task, index: SplitIndex, vocab_size: int) -> SplitReport:
    """Read all shards of a split.

    Args:
        task: reports progress, in bytes of shards.
        index: index of the split.
        vocab_size: every token must be below this.
    """
    report = SplitReport([], np.zeros(vocab_size, np.int64), 0, len(index.shards), 0)
    for shard in index.shards:
        found = fault(shard, vocab_size)
        if found is not None:
            report.faults.append(f"{found}: {remake(shard)}")
        else:
            report.counts += count_tokens(tokens(shard), vocab_size)
            report.samples += shard.samples
        report.unhashed += not shard.hashes
        task.report(shard.bytes)
    listed = {shard.path for shard in index.shards}
    for path in sorted(index.path.parent.rglob("*.mds")):
        if path not in listed:
            report.faults.append(f"{path} is in no index: remove it")
    return report


def statistics_faults(source: PreparedSource, reports: dict[str, SplitReport]) -> Iterator[str]:
    """Differences of counts.npy and stats.json of a source from its shards.

    Args:
        source: the prepared source, with its files.
        reports: results of checking the shards, by split: ``train`` and ``val``.

    Returns:
        A sentence for each difference.
    """
    stats, corpus = source.directory / "stats.json", source.directory.parent.parent.name
    train, val = reports["train"].counts, reports["val"].counts
    size = len(local_vocabulary(train, source.special_ids))
    facts = [
        ("local_vocab_size", source.local_vocab_size, size),
        ("unigram_ce", source.unigram_ce, unigram_cross_entropy(val, train)),
    ]
    for split, report in reports.items():
        written, where = source.splits[split], f"splits.{split}"
        facts.append((f"{where}.tokens", written.tokens, int(report.counts.sum())))
        parts = [read_json(p) for p in source.directory.glob(f"{split}/*/part.json")]
        if len(parts) == len({s.path.parent for s in source.indexes[split].shards}):
            for key in ("documents", "bytes", "dropped_tokens"):
                total = sum(part[key] for part in parts)
                facts.append((f"{where}.{key}", getattr(written, key), total))
    for key, here, value in facts:
        if abs(value - here) > 1e-9 * abs(value):
            yield f"{stats} says {key} = {here}, its shards {value}: {make_again(corpus)}"
    try:
        if not np.array_equal(source.counts(), train):
            yield (
                f"{source.directory / 'counts.npy'} does not count the tokens of its shards: "
                f"{make_again(corpus)}"
            )
    except DataError as error:
        yield str(error)


def check_corpus(root: Path, name: str, pool: Workers) -> tuple[list[str], list[str]]:
    """Verify a corpus.

    Args:
        root: folder that holds `data/` and `tokenizers/`.
        name: name of the corpus.
        pool: processes that read shards.

    Returns:
        All faults, and notes; one sentence each.
    """
    directory = root / "data" / name
    try:
        content = described(directory / "corpus.json", name)
    except DataError as error:
        return [str(error)], []
    facts: dict[str, Any] = content["tokenizers"]
    faults = [
        f"{found}: {make_again(name)}"
        for tokenizer, fact in facts.items()
        if (found := tokenizer_fault(root / "tokenizers" / name / tokenizer, fact))
    ]
    folders = [
        directory / source / tokenizer
        for source in (*content["sources"], *content["held_out"])
        for tokenizer in (GLOBAL, source)
        if tokenizer in facts
    ]
    tasks: dict[tuple[Path, str], tuple[SplitIndex, int]] = {}
    for folder in folders:
        for split in SPLITS:
            try:
                index = read_index(folder / split, make_again(name))
            except DataError as error:
                faults.append(str(error))
            else:
                tasks[folder, split] = (index, facts[folder.name]["vocab_size"])
    size = sum(shard.bytes for index, _ in tasks.values() for shard in index.shards)
    reports = dict(
        zip(tasks, pool.run("check shards", check_split, list(tasks.values()), size), strict=True)
    )
    for folder in folders:
        of_folder = {split: reports[folder, split] for split in SPLITS if (folder, split) in tasks}
        damaged = [line for report in of_folder.values() for line in report.faults]
        faults += damaged
        try:
            source = read_source(folder)
        except DataError as error:
            if str(error) not in faults:
                faults.append(str(error))
            continue
        faults += _of_another(source, folder, facts, name, content["sequence_length"])
        if not damaged:
            faults += statistics_faults(source, of_folder)
    unhashed = sum(report.unhashed for report in reports.values())
    notes = [
        f"{len(folders)} folders, {sum(r.shards for r in reports.values())} shards, {size:,} B"
    ]
    if unhashed:
        notes.append(
            f"{unhashed} shards have no hash in their index, so that a change within a token's "
            "range shows in counts alone: prepare the corpus again to have one"
        )
    return faults, notes


def _of_another(
    source: PreparedSource, folder: Path, facts: dict[str, Any], corpus: str, length: int
) -> Iterator[str]:
    """Entries of a stats.json that belong to another folder, tokenizer or corpus."""
    fact = facts[folder.name]
    for key, said, expected in (
        ("source", source.name, folder.parent.name),
        ("tokenizer.name", source.tokenizer, folder.name),
        ("tokenizer.hash", source.tokenizer_hash, fact["hash"]),
        ("vocab_size", source.vocab_size, fact["vocab_size"]),
        ("sequence_length", source.sequence_length, length),
    ):
        if said != expected:
            yield (
                f"{folder / 'stats.json'} has {key} = {said}, the corpus has {expected}: "
                f"{make_again(corpus)}"
            )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Verify a prepared corpus completely.")
    parser.add_argument("corpus", help="name of the corpus")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of data/ and tokenizers/")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: one a core)")
    options = parser.parse_args(arguments)
    start, console = time.monotonic(), Console(stderr=True)
    with Workers(options.workers, console) as pool:
        faults, notes = check_corpus(options.root, options.corpus, pool)
    for line in faults:
        print(line)
    directory = options.root / "data" / options.corpus
    if faults:
        log.error(f"{directory} has {len(faults)} faults")
        return 1
    print(f"{directory} is whole ({'; '.join(notes)}; {time.monotonic() - start:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
