"""Tokenizer directories: their identity, and whether they name code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dept.errors import DataError


def tokenizer_hash(path: str | Path) -> str:
    """Identity of a tokenizer: sha256 (hex) of the `tokenizer.json` in directory `path`.

    Raises:
        DataError: there is no `tokenizer.json`.
    """
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        raise DataError(
            f"{file} does not exist: name a directory that holds a fast transformers tokenizer."
        )
    return hashlib.sha256(file.read_bytes()).hexdigest()


def tokenizer_fault(path: Path, fact: Mapping[str, Any]) -> str | None:
    """Describe what is wrong with a tokenizer directory of a corpus; `None` if nothing is.

    Args:
        path: the directory.
        fact: its entry in `corpus.json`.
    """
    if not (path / "tokenizer.json").is_file() or tokenizer_hash(path) != fact["hash"]:
        return f"{path} is missing or is not the tokenizer that its corpus was made with"
    if names_code(path):
        return f"{path / 'tokenizer_config.json'} names code to run (auto_map), which is refused"
    return None


def names_code(tokenizer: str | Path) -> bool:
    """Whether transformers would run code of a tokenizer directory with `trust_remote_code`.

    Raises:
        DataError: its `tokenizer_config.json` is not JSON.
    """
    for name in ("tokenizer_config.json", "config.json"):
        file = Path(tokenizer) / name
        if file.is_file():
            try:
                if "auto_map" in json.loads(file.read_bytes()):
                    return True
            except (ValueError, TypeError):
                raise DataError(f"{file} is not JSON: copy the tokenizer again") from None
    return False
