"""Files that are whole or not there, whenever a process or a machine dies; and whether they are."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE = ".torn"
"""Ending of the name of a file that was found to be cut short or altered."""

_TEMPORARY = re.compile(r"\.writing-(\d+)-.+")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name beside it, which becomes the file when all is on disk.

    Args:
        path: of the file; its folder is made if it is not there.

    Yields:
        The temporary path, to be written and closed. If that fails (a full disk, a kill), the file
        is what it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{os.getpid()}-{path.name}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)  # the name, too, must outlive a loss of power


def write(path: str | Path, content: bytes | str) -> None:
    """Write a small file whole; text as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def link(path: str | Path, target: str) -> None:
    """Let ``path`` be a symbolic link to ``target``, without a moment at which there is none."""
    temporary = Path(path).with_name(f".latest.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


def is_whole(path: str | Path) -> bool:
    """Whether a file of ``torch.save`` is as it was written, by the CRC-32 of all it holds.

    ``torch.load`` takes altered tensors without a word.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError):
        return False


def set_aside(path: Path) -> Path:
    """Rename a file that must not be used; its new name."""
    return path.rename(path.with_name(path.name + ASIDE))


def sweep(folder: str | Path) -> None:
    """Remove what processes that are gone were writing into a folder."""
    for path in Path(folder).glob(".writing-*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_running(int(match[1])):
            path.unlink(missing_ok=True)


def sync(path: str | Path) -> None:
    """Bring a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
