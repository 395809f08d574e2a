"""Files that a command of evaluation writes."""

from __future__ import annotations

from pathlib import Path

from dept.errors import ConfigError


def refuse_to_overwrite(path: Path | None, force: bool) -> None:
    """To be called before a long computation.

    Raises:
        ConfigError: the file is there, and it was not said that it may go.
    """
    if path is not None and path.exists() and not force:
        raise ConfigError(f"{path} is there already: name another --out, or give --force")
