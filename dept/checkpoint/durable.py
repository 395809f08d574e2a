"""Durable writes: a file is complete or absent, whenever a process or a machine dies."""

from __future__ import annotations

import gc
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
    """Write a file under a temporary name, and rename it when all bytes are on disk.

    Args:
        path: path of the file; its folder is made if it does not exist.

    Yields:
        The temporary path, which the caller writes and closes. If that fails (a full disk, a kill),
        the file is unchanged.
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
    sync(path.parent)  # the name must also survive a loss of power
    # torch.save holds what it wrote, such as a whole optimizer's state, in a reference cycle. The
    # young generations are collected in a millisecond.
    gc.collect(1)


def write(path: str | Path, content: bytes | str) -> None:
    """Write a small file with :func:`replacing`; text as UTF-8.

    Args:
        path: path of the file; its folder is made if it does not exist.
        content: all bytes of the file, or its text.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def link(path: str | Path, target: str) -> None:
    """Make ``path`` a symbolic link to ``target``, atomically.

    Args:
        path: path of the link. An older link or file of this name is replaced.
        target: what it points to, as it is written into the link. A relative target is relative to
            the folder of the link.
    """
    temporary = Path(path).with_name(f".latest.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


def is_whole(path: str | Path) -> bool:
    """Whether a file of ``torch.save`` is as it was written, by the CRC-32 of its contents.

    ``torch.load`` accepts altered tensors silently.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError):
        return False


def set_aside(path: Path) -> Path:
    """Rename a file that must not be used, and return its new path."""
    return path.rename(path.with_name(path.name + ASIDE))


def sweep(folder: str | Path) -> None:
    """Remove temporary files in a folder whose processes no longer exist."""
    for path in Path(folder).glob(".writing-*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_running(int(match[1])):
            path.unlink(missing_ok=True)


def sync(path: str | Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
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
