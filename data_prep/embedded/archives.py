"""Archives of packages, read packed: .whl, .zip, .tar (.gz, .bz2, .xz), .tgz and .deb."""

from __future__ import annotations

import fnmatch
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dept.data_prep.embedded.download import MissingClient, client
from dept.data_prep.embedded.unpack import (
    ARCHIVE_LIMIT,
    CHUNK,
    ENTRY_LIMIT,
    MEMBER_LIMIT,
    NAME_LIMIT,
    XZ_MEMORY,
    Damaged,
    TooMuch,
    Unpacked,
    unpack,
)

DEB = b"!<arch>\ndebian"  # the first bytes of a .deb
DEB_MEMORY = 2 * XZ_MEMORY  # of dpkg-deb


def patterns(value: Any) -> list[str]:
    """A pattern, a list of them, or nothing, as a list."""
    return [value] if isinstance(value, str) else list(value or [])


def is_member(name: str, members: Any, exclude: Any = ()) -> bool:
    """True where a name matches.

    Args:
        name: name of a file in an archive.
        members: pattern or list of patterns; `*` matches slashes too.
        exclude: patterns of names that do not match.
    """
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns(members)) and not any(
        fnmatch.fnmatchcase(name, pattern) for pattern in patterns(exclude)
    )


def _safe(name: str, archive: str) -> str:
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or ":" in parts[0] or ".." in parts or "\0" in name:
        raise ValueError(
            f"{archive} holds a file named {name[:80]!r}, which points outside the archive: do not "
            "use this package."
        )
    if len(name) > NAME_LIMIT:
        raise ValueError(
            f"{archive} holds a name of {len(name):,} characters ({name[:40]}...): do not use this "
            "package."
        )
    return name


def read_members(
    archive: Path,
    members: Any,
    exclude: Any = (),
    *,
    limit: int = MEMBER_LIMIT,
    total: int = ARCHIVE_LIMIT,
    content: bytes | None = None,
    packed: bool = False,
) -> Iterator[tuple[str, bytes]]:
    """The files of an archive that match, in the order of their names.

    Nothing is written to disk; links and devices are no files. Names in a .deb have no `./` in
    front.

    Args:
        archive: path of the archive; with `content`, only its name in messages.
        members: pattern or list of patterns of names inside the archive; `*` matches slashes too.
        exclude: patterns of names that are left out.
        limit: bytes that one file may have, packed (.gz, .bz2, .xz files are unpacked) or not.
        total: bytes that all files that are read may have, or all of a tar.
        content: bytes of the archive where it is itself a file of another one.
        packed: leave .gz, .bz2 and .xz files as they are (an archive in the archive, which is read
            front to back later).

    Yields:
        (name, content) in the order of the names.

    Raises:
        ValueError: the archive cannot be read, nothing matches, a name points outside, or a file is
            too large.
        MissingClient: dpkg-deb is not installed.
    """
    found = unpacked = 0

    def is_chosen(name: str) -> bool:
        return is_member(name, members, exclude)

    def content_of(name: str, size: int, stream: IO[bytes]) -> bytes:
        nonlocal found, unpacked
        data = stream.read(limit + 1) if size <= limit else b""
        if size > limit or len(data) > limit:
            raise ValueError(
                f"{name} in {archive.name} is larger than {limit:,} bytes: leave it out with "
                "exclude, or raise max_member_bytes."
            )
        try:
            data = data if packed else unpack(data, limit)
        except ValueError as error:
            raise ValueError(
                f"{name} in {archive.name} cannot be unpacked ({error}): leave it out with "
                "exclude, or raise max_member_bytes."
            ) from error
        found, unpacked = found + 1, unpacked + len(data)
        if unpacked > total:
            raise TooMuch(f"more than {total:,} bytes come out of it")
        return data

    try:
        with _opened(archive, content) as opened:
            if opened.seekable() and zipfile.is_zipfile(opened):
                for entry in _of_zip(opened, archive.name, is_chosen):
                    yield entry[0], content_of(*entry)
            else:
                if opened.seekable():
                    opened.seek(0)
                # A tar is read front to back, so the matching files wait here to be sorted.
                entries = _of_tar(Unpacked(opened, total, limit + CHUNK), archive.name, is_chosen)
                yield from sorted({entry[0]: content_of(*entry) for entry in entries}.items())
    except MissingClient:
        raise
    except TooMuch as error:
        raise ValueError(
            f"{archive.name} is not unpacked, {error}: do not use it, or raise max_archive_bytes."
        ) from error
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        NotImplementedError,  # a compression that is unknown
        RuntimeError,  # a password
        zlib.error,
        Damaged,
        OverflowError,
    ) as error:
        raise ValueError(
            f"{archive} is not a whole archive ({error}): delete it so that it is downloaded again."
        ) from error
    if not found:
        raise ValueError(
            f"no file in {archive.name} matches members {patterns(members)}: compare with the "
            "names that `python -m zipfile -l`, `tar tf` or `dpkg-deb --contents` lists."
        )


@contextmanager
def _opened(archive: Path, content: bytes | None) -> Iterator[io.BufferedReader]:
    """The bytes of a zip or tar; those of a .deb are the tar in it."""
    if content is not None:
        yield io.BufferedReader(io.BytesIO(content))  # type: ignore[arg-type]
        return
    with archive.open("rb") as file:
        if file.peek(8).startswith(DEB):
            with _of_deb(archive) as tar:
                yield tar
        else:
            yield file


@contextmanager
def _of_deb(archive: Path) -> Iterator[io.BufferedReader]:
    """The files of a .deb as a tar, unpacked by dpkg-deb in bounded memory and in a pipe.

    dpkg-deb runs none of the package's scripts, and no more of the archive is unpacked than is read
    here.
    """
    program = client("dpkg-deb", "install the package dpkg")
    shell = f'ulimit -v {DEB_MEMORY // 1024} && exec "$0" --fsys-tarfile "$1"'
    environment = {**os.environ, "LC_ALL": "C", "DPKG_DEB_THREADS_MAX": "1"}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            ["sh", "-c", shell, program, str(archive)],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
        ) as process,
    ):
        assert process.stdout
        try:
            yield process.stdout  # type: ignore[misc]
            if len(process.stdout.read(CHUNK)) == CHUNK:  # a tar is padded to 10 KiB
                raise Damaged("its tar continues after its end")
            if process.wait():
                raise _failure(process, errors)
        except tarfile.TarError:
            process.stdout.close()  # or it waits to write the rest, and now may die of that
            if process.wait() > 0:
                raise _failure(process, errors) from None
            raise
        finally:
            process.kill()


def _failure(process: subprocess.Popen, errors: IO[bytes]) -> Damaged:
    errors.seek(0)
    lines = errors.read(1 << 16).decode(errors="replace").splitlines()
    return Damaged(lines[0] if lines else f"dpkg-deb ended with {process.returncode}")


Entry = tuple[str, int, IO[bytes]]
"""A file in an archive: its name, the size that the archive states, its content."""


def _of_zip(opened: IO[bytes], archive: str, is_chosen: Callable) -> Iterator[Entry]:
    bounded = _Bounded(opened, archive)
    with zipfile.ZipFile(bounded) as file:  # type: ignore[call-overload]
        bounded.limit = sys.maxsize
        entries = file.infolist()
        if len(entries) > ENTRY_LIMIT:
            raise ValueError(f"{archive} holds more than {ENTRY_LIMIT:,} files: do not use it.")
        infos = {_safe(info.filename, archive): info for info in entries if not info.is_dir()}
        for name in sorted(filter(is_chosen, infos)):
            if infos[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise NotImplementedError("a compression that no wheel has")
            with file.open(infos[name]) as stream:
                yield name, infos[name].file_size, stream


class _Bounded:
    """A zip file whose list of files, which is read at once before it can be counted, is bounded.

    Args:
        opened: the file.
        archive: its name, for the error.

    Attributes:
        limit: bytes that one read may give.
    """

    def __init__(self, opened: IO[bytes], archive: str) -> None:
        self._opened, self._archive = opened, archive
        self.limit = ENTRY_LIMIT * 64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def read(self, size: int = -1) -> bytes:
        if size > self.limit:
            raise ValueError(
                f"{self._archive} has a list of files of {size:,} bytes: do not use it."
            )
        return self._opened.read(size)


def _of_tar(stream: Any, archive: str, is_chosen: Callable) -> Iterator[Entry]:
    with tarfile.open(fileobj=stream, mode="r:") as file:
        for number, info in enumerate(file):
            file.members = []  # it would keep all of them
            if number >= ENTRY_LIMIT:
                raise ValueError(f"{archive} holds more than {ENTRY_LIMIT:,} files: do not use it.")
            name = _safe(info.name, archive).removeprefix("./")
            if info.isreg() and is_chosen(name):
                yield name, info.size, file.extractfile(info) or io.BytesIO()
