"""Files that commands of evaluation write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dept.checkpoint import durable
from dept.errors import ConfigError


def refuse_to_overwrite(path: Path | None, force: bool) -> None:
    """Refuse to overwrite a file, before a long computation.

    Args:
        path: the file; ``None`` if none will be written.
        force: allow the file to exist.

    Raises:
        ConfigError: the file exists, and ``force`` is not set.
    """
    if path is not None and path.exists() and not force:
        raise ConfigError(f"{path} exists already: name another --out, or give --force")


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write rows as lines of JSON, and print how many there are.

    Args:
        path: file to write.
        rows: values that JSON can hold, one for each line.
    """
    durable.write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{path}: {len(rows):,} rows")
