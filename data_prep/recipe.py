"""The recipe of prepared data, which prevents mixing data of two recipes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dept.data_prep.corpus import Corpus
from dept.data_prep.files import GATHERED, read_json, write_json
from dept.data_prep.local_files import find_files
from dept.errors import DataError

BLOCKS, BLOCK_BYTES = 16, 1 << 16  # of a file that its fingerprint reads: all of it up to 1 MB


def fingerprint(path: Path) -> str:
    """Size and a hash of evenly spaced blocks: costs the same for a file of any size, and survives
    a copy."""
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        for block in range(BLOCKS):
            start = block * BLOCK_BYTES
            if size > BLOCKS * BLOCK_BYTES:
                start = block * (size - BLOCK_BYTES) // (BLOCKS - 1)
            file.seek(start)
            digest.update(file.read(BLOCK_BYTES))
    return f"{size}:{digest.hexdigest()}"


def check_recipe(
    directory: Path, tokenizers: Path, corpus: Corpus, folders: tuple[Path, ...]
) -> None:
    """Compares the corpus yaml and its local files with those the data was made from; notes them
    for new data.

    Args:
        directory: `data/<corpus>`.
        tokenizers: `tokenizers/<corpus>`, for the message.
        corpus: as in the yaml now.
        folders: where its files are looked for.

    Raises:
        DataError: something differs, or the directory holds data of unknown origin, or a file is
            missing.
    """
    finished = (directory / "corpus.json").exists()
    inputs = {}
    for source in corpus.sources + corpus.held_out:
        try:
            files = find_files(source, folders)
        except DataError:
            if finished:  # the data is there, its origin may be gone
                continue
            raise
        inputs[source.name] = [f"{path.name} {fingerprint(path)}" for path in files]
    now = json.loads(json.dumps({"options": corpus.recipe(), "inputs": inputs}))
    before = read_json(directory / "recipe.json")
    fix = f"delete {directory} and {tokenizers} to make it again, or choose another corpus name."
    for folder in (directory, tokenizers):
        if before is None and any(not p.name.startswith(".") for p in folder.glob("*")):
            raise DataError(f"{folder} holds files that no recipe.json in {directory} owns: {fix}")
    begun = any(any(d.glob("*/text/parts/*.json")) for d in (directory, directory / GATHERED))
    if before and (finished or begun):
        if finished:
            now["inputs"] = {**before["inputs"], **now["inputs"]}
        change = difference(before, now)
        if change:
            raise DataError(f"{directory} was made from another recipe: {change}; {fix}")
    elif before != now:
        write_json(directory / "recipe.json", now)


def difference(before: Any, now: Any, where: str = "") -> str | None:
    """The first difference of two JSON values in words, or None.

    Args:
        before: the earlier value.
        now: the present value.
        where: path of the two values, keys with dots between.
    """
    if before == now:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(k for k in now if k not in before)]:
            change = difference(before.get(key), now.get(key), f"{where}.{key}".lstrip("."))
            if change:
                return change
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for old, new in zip(before, now, strict=True):
            name = new.get("name", "") if isinstance(new, dict) else ""
            place = where if where.startswith("inputs") else f"{where}.{name}".rstrip(".")
            change = difference(old, new, place)
            if change:
                return change
    if where.startswith("inputs."):
        return f"the files of source {where.removeprefix('inputs.')} have changed"
    return f"{where.removeprefix('options.')} was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
    if isinstance(value, list):
        value = [v.get("name", v) if isinstance(v, dict) else v for v in value]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."
