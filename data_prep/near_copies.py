"""Near copies: documents of a corpus that resemble an earlier one of it, in any source or split.

Resemblance is the Jaccard index of two documents' runs of words (of characters in Chinese and
Japanese), estimated with MinHash (Broder 1997) by the library rensa. Translations of one text share
no runs, and stay.

This stage runs between the collection of text and all that uses it. `sketch` reads the parts that
collect.py left in a folder aside, `near_copies` decides, `keep` writes the parts of the source
without what is left out.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dept.data.corpus import SPLITS
from dept.data_prep.collect import part_path
from dept.data_prep.corpus import NearCopyOptions
from dept.data_prep.embedded.clean import runs
from dept.data_prep.files import read_json, read_texts, text_part, write_json
from dept.data_prep.pool import Task
from dept.errors import DataError

PERMUTATIONS = 128  # numbers of a sketch; the estimate has a standard deviation of at most 0.045
SEED = 42
RECALL = 0.99  # of pairs just at the threshold, that are compared at all
BATCH = 256  # documents


def sketch(task: Task, path: Path, words: int) -> np.ndarray:
    """MinHash of each document of a part.

    Args:
        task: reports progress, in bytes of text.
        path: the part.
        words: words of a run.

    Returns:
        uint32 [documents, PERMUTATIONS].
    """
    from rensa import RMinHash

    texts, sketches, size = read_texts(path), [], 0
    while batch := list(itertools.islice(texts, BATCH)):
        found = [sorted(runs(text, words)) for text in batch]
        rows = RMinHash.digest_matrix_from_token_sets(found, PERMUTATIONS, SEED).to_rows()
        sketches.append(np.array(rows, dtype=np.uint32))
        size += sum(len(text.encode()) for text in batch)
        task.advance(size)
    task.advance(size, last=True)
    return np.concatenate(sketches)


def rows_of_a_band(threshold: float, recall: float = RECALL) -> int:
    """How many numbers of a sketch must agree for two documents to be compared.

    Two documents of resemblance s agree in one of n bands of r numbers with probability
    1 - (1 - s^r)^n. More numbers make fewer needless comparisons.

    Args:
        threshold: resemblance from which on a document is a near copy, 0 to 1.
        recall: the least probability at that resemblance.
    """
    fits = [
        rows
        for rows in (1, 2, 4, 8, 16, 32)
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= recall
    ]
    return max(fits, default=1)


def near_copies(sketches: np.ndarray, threshold: float) -> np.ndarray:
    """Which documents resemble an earlier one that is kept.

    Args:
        sketches: uint32 [documents, PERMUTATIONS], in the order of preference.
        threshold: resemblance from which on a document is left out, 0 to 1.

    Returns:
        bool [documents], True for those to leave out.
    """
    rows = rows_of_a_band(threshold)
    groups: dict[int, list[int]] = defaultdict(list)  # document -> the groups that it is in
    number = 0
    for start in range(0, PERMUTATIONS, rows):
        band = np.ascontiguousarray(sketches[:, start : start + rows])
        keys = band.view(np.dtype((np.void, band.itemsize * rows))).ravel()
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        for document in np.flatnonzero(counts[inverse] > 1):
            groups[int(document)].append(number + int(inverse[document]))
        number += len(counts)
    is_copy = np.zeros(len(sketches), bool)
    kept: dict[int, list[int]] = defaultdict(list)  # group -> its documents that are kept
    for document in sorted(groups):
        others = sorted({other for group in groups[document] for other in kept[group]})
        equal = (sketches[others] == sketches[document]).mean(axis=1) if others else np.zeros(1)
        if equal.max() >= threshold:
            is_copy[document] = True
        else:
            for group in groups[document]:
                kept[group].append(document)
    return is_copy


def parts_in_order(names: list[str], folder: Path) -> list[tuple[str, str, int]]:
    """The parts of collected text, in the order of preference: by source, validation first.

    Args:
        names: the sources, those to train on before those held out.
        folder: of the sources as collect.py left them.

    Returns:
        (source, split, part).
    """
    found = []
    for name in names:
        collected = read_json(folder / name / "text" / "collected.json")
        found += [(name, split, n) for split in reversed(SPLITS) for n in collected[split]["parts"]]
    return found


def keep(
    task: Task, source: str, gathered: Path, directory: Path, copies: dict[tuple[str, int], Any]
) -> dict[str, Any]:
    """Writes the text of a source without its near copies.

    Args:
        task: reports progress, in bytes of text.
        source: its name, for the error.
        gathered: directory of the source as collect.py left it.
        directory: of the source.
        copies: for each split and part, which of its documents are left out.

    Returns:
        The content of collected.json, which is written last; `near_copies` is the number of
        documents left out.

    Raises:
        DataError: nothing is left of a split.
    """
    summary = read_json(gathered / "text" / "collected.json")
    size, dropped = 0, 0
    for split in SPLITS:
        parts: dict[int, tuple[int, int]] = {}
        for number in summary[split]["parts"]:
            is_copy = copies[split, number]
            with text_part(part_path(directory, split, number)) as part:
                for text, leave_out in zip(
                    read_texts(part_path(gathered, split, number)), is_copy, strict=True
                ):
                    data = len(text.encode())
                    size += data
                    if not leave_out:
                        part.write(text, data)
                    task.advance(size)
            if part.documents:
                parts[number] = part.documents, part.bytes
            dropped += int(is_copy.sum())
        if not parts:
            raise DataError(
                f"Source {source}: all its text for {split} is in other sources: raise "
                "near_copies.threshold, or leave the source out."
            )
        summary[split] = {
            "documents": sum(documents for documents, _ in parts.values()),
            "bytes": sum(size for _, size in parts.values()),
            "parts": list(parts),
        }
    summary["near_copies"] = dropped
    write_json(directory / "text" / "collected.json", summary)
    task.advance(size, last=True)
    return summary


def without_near_copies(
    pool: Any, names: list[str], gathered: Path, directory: Path, options: NearCopyOptions
) -> None:
    """Runs the stage for a corpus.

    Args:
        pool: Workers.
        names: the sources, those to train on before those held out.
        gathered: folder of the sources as collect.py left them.
        directory: folder of the corpus.
        options: `near_copies` of the corpus.
    """
    parts = parts_in_order(names, gathered)
    collected = {name: read_json(gathered / name / "text" / "collected.json") for name in names}
    total = sum(c[split]["bytes"] for c in collected.values() for split in SPLITS)
    paths = [part_path(gathered / name, split, number) for name, split, number in parts]
    arguments = [(path, options.words) for path in paths]
    sketches = pool.run("1/3 sketch documents", sketch, arguments, total)
    is_copy = near_copies(np.concatenate(sketches), options.threshold)
    ends = np.cumsum([len(rows) for rows in sketches])[:-1]
    flags = dict(zip(parts, np.split(is_copy, ends), strict=True))
    arguments = []
    for name in names:
        own = {key[1:]: value for key, value in flags.items() if key[0] == name}
        arguments.append((name, gathered / name, directory / name, own))
    pool.run("1/3 leave out near copies", keep, arguments, total)
