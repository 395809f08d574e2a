"""Rows of a data set as examples of a task: its pieces of text and its label."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dept.errors import DataError
from dept.evaluation.finetuning.layouts import LAYOUTS
from dept.evaluation.finetuning.options import SPLITS, DataOptions, TaskOptions

# How `datasets` reads a file, by the end of its name.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"delimiter": "\t"}),
    ".parquet": ("parquet", {}),
}


@dataclass(frozen=True)
class Example:
    """A row of a data set."""

    pieces: Mapping[str, Any]
    """Text by name of the piece; of ``answers`` a list of texts."""

    label: float | int
    """Number of the class or of the answer; or the regression target."""


def read_splits(data: DataOptions, task: TaskOptions) -> dict[str, list[Example]]:
    """The examples of ``train``, ``val`` and ``test``.

    Args:
        data: where the rows come from.
        task: the task, with the columns and the classes.

    Returns:
        The examples by split. Where ``val`` or ``test`` has no rows of its own, a hash of the first
        piece draws them from ``train``.

    Raises:
        DataError: a file or a split is missing, lacks a column, or has a label that is none.
    """
    given = {name: getattr(data, name) for name in SPLITS if getattr(data, name)}
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for name, where in given.items():
        rows = _rows(data, where)
        splits[name] = examples(rows, task, _name(data, where))
    first = LAYOUTS[task.kind].pieces[0]
    everything, splits["train"] = splits["train"], []
    for example in everything:
        name = split_of(example.pieces[first], data.drawn["val"], data.drawn["test"])
        splits[name].append(example)
    for name, found in splits.items():
        if not found:
            raise DataError(
                f"{given.get(name, data.train)} leaves no example for {name}: give it more rows, "
                f"or a file of their own in data.{name}"
            )
    return splits


def read_transfer(data: DataOptions, task: TaskOptions) -> dict[str, list[Example]]:
    """The examples of ``data.transfer``, by the name of a source.

    Args:
        data: where the rows come from.
        task: the task, with the columns and the classes.

    Raises:
        DataError: a file or a split is missing or empty, lacks a column, or has a label that is
            none.
    """
    found = {}
    for name, where in data.transfer.items():
        found[name] = examples(_rows(data, where), task, _name(data, where))
        if not found[name]:
            raise DataError(f"{_name(data, where)} has no rows: correct data.transfer.{name}")
    return found


def split_of(text: str, val: float, test: float) -> str:
    """The split of a text, by its hash: the same in every run, and for every copy of the text.

    Args:
        text: that decides.
        val: share that is for validation.
        test: share that is for the test.
    """
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return "test" if place < test else "val" if place < test + val else "train"


def examples(rows: Iterable[Mapping[str, Any]], task: TaskOptions, where: str) -> list[Example]:
    """Rows as examples.

    Args:
        rows: of a data set.
        task: which columns they are made of.
        where: of the rows, for messages.

    Raises:
        DataError: a row lacks a column, or has a label that is none.
    """
    found = []
    for number, row in enumerate(rows, 1):
        pieces = {
            name: _text(row, column, f"{where}, row {number}", name == "answers")
            for name, column in task.columns.items()
            if name != "label"
        }
        label = _label(row, task, f"{where}, row {number}")
        answers = pieces.get("answers")
        if answers is not None and len(answers) != len(task.labels or ()):
            raise DataError(
                f"{where}, row {number} has {len(answers)} answers and task.labels "
                f"{len(task.labels or ())}: each needs one"
            )
        found.append(Example(pieces, label))
    return found


def _rows(data: DataOptions, where: str) -> Sequence[Mapping[str, Any]]:
    if data.hub is None and not Path(where).is_file():
        raise DataError(
            f"{where} does not exist: name a file in data.train, data.val and data.test, or a data "
            f"set in data.hub (`make downstream` makes those of data/downstream)"
        )
    if data.hub is None and Path(where).suffix not in FORMATS:
        raise DataError(f"{where} has an unknown format: it may end in {', '.join(FORMATS)}")
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        if data.hub is not None:
            return load_dataset(
                data.hub, data.config, split=where, revision=data.revision, trust_remote_code=False
            )
        kind, options = FORMATS[Path(where).suffix]
        return load_dataset(kind, data_files={"rows": where}, split="rows", **options)
    except Exception as error:  # of any library that reads for it
        cause = error.__cause__ or error
        raise DataError(
            f"{_name(data, where)} cannot be read ({' '.join(str(cause).split())[:300]}): correct "
            f"data.*, or see whether this machine reaches it"
        ) from error


def _name(data: DataOptions, where: str) -> str:
    return f"{data.hub}, {where}" if data.hub else where


def _text(row: Mapping[str, Any], column: Any, where: str, several: bool) -> Any:
    if several:
        if not isinstance(column, str):
            return [_text(row, name, where, False) for name in column]
        texts = _value(row, column, where)
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            return texts
        raise DataError(f"{where} has no list of texts in column {column}")
    text = _value(row, column, where)
    if not isinstance(text, str):
        raise DataError(f"{where} has {text!r} in column {column}: it must be text")
    return text


def _label(row: Mapping[str, Any], task: TaskOptions, where: str) -> float | int:
    column = task.columns["label"]
    value = _value(row, column, where)
    if task.labels is None:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise DataError(
                f"{where} has {value!r} in column {column}: it must be a number"
            ) from None
    names = [str(name) for name in task.labels]
    if str(value) in names:
        return names.index(str(value))
    if str(value).isdigit() and int(value) < len(names):
        return int(value)
    raise DataError(
        f"{where} has the label {value!r}: task.labels has {', '.join(names)}"
        + (", and test labels of the hub are often hidden" if value == -1 else "")
    )


def _value(row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
        raise DataError(
            f"{where} lacks the column {column!r}: it has {', '.join(row)}; correct task.columns"
        )
    return row[column]
