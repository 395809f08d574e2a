"""Archives of Python packages: downloaded once, from the configured index, and read packed."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dept.data_prep.unpack import (
    ARCHIVE_LIMIT,
    CHUNK,
    ENTRY_LIMIT,
    MEMBER_LIMIT,
    NAME_LIMIT,
    Damaged,
    TooMuch,
    Unpacked,
    unpack,
)

# Wheels are taken for one fixed platform, whatever this machine is: they are read, not run, and so
# have one hash.
WHEEL = (
    "--only-binary=:all:",
    "--python-version=3.13.9",
    "--implementation=cp",
    "--platform=manylinux2014_x86_64",
    "--platform=manylinux_2_28_x86_64",
)
# pip asks a source archive for its metadata before it hands it over, and so runs its build backend;
# --require-hashes keeps an archive with another content from being run.
SDIST = ("--no-binary=:all:",)


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip") or shutil.which("pip3")  # any pip will do: nothing is installed
    if not found:
        raise RuntimeError(
            f"pip, which downloads the text, is not installed for {sys.executable}: "
            "run `python -m ensurepip`, or `uv pip install pip`."
        )
    return [found]


def _check(archive: Path, sha256: str) -> None:
    with archive.open("rb") as file:
        found = (
            hashlib.file_digest(file, "sha256").hexdigest()
            if sys.version_info >= (3, 11)
            else hashlib.sha256(file.read()).hexdigest()
        )
    if found != sha256:
        raise ValueError(
            f"{archive} has the sha256 {found}, and the corpus yaml wants {sha256}: delete the "
            "folder it is in to download it again, or correct sha256 if the package was changed on "
            "purpose."
        )


def fetch(
    requirement: str, cache: Path, *, kind: str | None = None, sha256: str | None = None
) -> Path:
    """Downloads one package archive from the configured index, unless the cache has it.

    Args:
        requirement: `name==version`.
        cache: folder for archives; each lies in a folder of its own, which appears at once or not
            at all.
        kind: `wheel`, `sdist`, or None for a wheel.
        sha256: hash of the archive in hexadecimal; verified by pip before anything else, and again
            on each later use.

    Returns:
        Path of the archive.

    Raises:
        ValueError: the requirement is not pinned, the kind is unknown, or the hash differs.
        RuntimeError: pip is missing or could not download the archive.
    """
    pinned = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)", requirement)
    if not pinned:
        raise ValueError(
            f"package {requirement!r} is not pinned: write name==version, so that everyone reads "
            "one text."
        )
    if kind not in (None, "wheel", "sdist"):
        raise ValueError(
            f"kind {kind!r} of package {requirement} is unknown: write wheel or sdist."
        )
    kind = kind or "wheel"
    if kind == "sdist" and not sha256:
        raise ValueError(
            f"package {requirement} is an sdist, which pip runs code of when it downloads it, and "
            "has no sha256: give the one of an archive that you have looked at."
        )
    folder = Path(cache) / f"{pinned[1].lower()}-{pinned[2]}-{kind}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
            wanted = Path(temporary) / "requirements.txt"
            wanted.write_text(requirement + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n")
            target = Path(temporary) / "archive"
            command = [
                *_pip(),
                "download",
                "--no-deps",
                "--no-input",
                "--disable-pip-version-check",
                "--progress-bar=off",
                "--quiet",
                *(WHEEL if kind == "wheel" else SDIST),
                *(("--require-hashes",) if sha256 else ()),
                "--dest",
                str(target),
                "--requirement",
                str(wanted),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                if "DO NOT MATCH THE HASHES" in done.stderr:
                    got = re.findall(r"Got\s+([0-9a-f]{64})", done.stderr)
                    raise ValueError(
                        f"the {kind} of {requirement} has the sha256 "
                        f"{got[0] if got else 'of another file'}, and the corpus yaml wants "
                        f"{sha256}: correct sha256, or kind if it names the wrong archive."
                    )
                errors = [
                    line for line in done.stderr.splitlines() if line.startswith("ERROR")
                ] or ["no reason given"]
                raise RuntimeError(
                    f"pip could not download the {kind} of {requirement} ({errors[-1][:200]}): "
                    "check the network and the package index that `pip config list` shows."
                )
            try:
                os.replace(target, folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, with the same file
                    raise
    archives = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    if len(archives) != 1:
        raise ValueError(
            f"{folder} holds {len(archives)} files instead of one archive: delete the folder to "
            "download it again."
        )
    if sha256:
        _check(archives[0], sha256)
    return archives[0]


def _patterns(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


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
) -> Iterator[tuple[str, bytes]]:
    """The files of a .whl, .zip or .tar (.gz, .bz2, .xz) that match, in the order of their names.

    Nothing is written to disk; links and devices are no files.

    Args:
        archive: path of the archive; with `content`, only its name in messages.
        members: pattern or list of patterns of names inside the archive; `*` matches slashes too.
        exclude: patterns of names that are left out.
        limit: bytes that one file may have, packed (.gz, .bz2, .xz files are unpacked) or not.
        total: bytes that all files that are read may have, or all of a tar.
        content: bytes of the archive where it is itself a file of another one.

    Yields:
        (name, content) in the order of the names.

    Raises:
        ValueError: the archive cannot be read, nothing matches, a name points outside, or a file is
            too large.
    """
    wanted, unwanted = _patterns(members), _patterns(exclude)

    def chosen(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted) and not any(
            fnmatch.fnmatchcase(name, pattern) for pattern in unwanted
        )

    def checked(name: str, size: int, stream: Any) -> bytes:
        data = stream.read(limit + 1) if size <= limit else b""
        if size > limit or len(data) > limit:
            raise ValueError(
                f"{name} in {archive.name} is larger than {limit:,} bytes: leave it out with "
                "exclude, or raise max_member_bytes."
            )
        try:
            return unpack(data, limit)
        except ValueError as error:
            raise ValueError(
                f"{name} in {archive.name} cannot be unpacked ({error}): leave it out with "
                "exclude, or raise max_member_bytes."
            ) from error

    found = unpacked = 0
    try:
        opened: Any = archive.open("rb") if content is None else io.BytesIO(content)
        with opened:
            is_zip = zipfile.is_zipfile(opened)
            opened.seek(0)
            for name, data in (_of_zip if is_zip else _of_tar)(
                opened, archive.name, chosen, checked, limit, total
            ):
                found += 1
                unpacked += len(data)
                if unpacked > total:
                    raise TooMuch(f"more than {total:,} bytes come out of it")
                yield name, data
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
            f"no file in {archive.name} matches members {wanted}: compare with the names that "
            "`python -m zipfile -l` or `tar tf` lists."
        )


def _of_zip(
    opened: BinaryIO, archive: str, chosen: Callable, checked: Callable, limit: int, total: int
) -> Iterator[tuple[str, bytes]]:
    bounded = _Bounded(opened, archive)
    with zipfile.ZipFile(bounded) as file:  # type: ignore[call-overload]
        bounded.limit = sys.maxsize
        entries = file.infolist()
        if len(entries) > ENTRY_LIMIT:
            raise ValueError(f"{archive} holds more than {ENTRY_LIMIT:,} files: do not use it.")
        infos = {_safe(info.filename, archive): info for info in entries if not info.is_dir()}
        for name in sorted(filter(chosen, infos)):
            if infos[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise NotImplementedError("a compression that no wheel has")
            with file.open(infos[name]) as stream:
                data = checked(name, infos[name].file_size, stream)
            yield name, data


class _Bounded:
    """A zip file whose list of files, which is read at once before it can be counted, is bounded.

    Args:
        opened: the file.
        archive: its name, for the error.

    Attributes:
        limit: bytes that one read may give.
    """

    def __init__(self, opened: BinaryIO, archive: str) -> None:
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


def _of_tar(
    opened: BinaryIO, archive: str, chosen: Callable, checked: Callable, limit: int, total: int
) -> Iterator[tuple[str, bytes]]:
    # A tar is read front to back, so the matching files wait here to be sorted.
    contents: dict[str, bytes] = {}
    entries = size = 0
    stream: Any = Unpacked(opened, total, limit + CHUNK)
    with tarfile.open(fileobj=stream, mode="r:") as file:
        for info in file:
            file.members = []  # it would keep all of them
            entries += 1
            if entries > ENTRY_LIMIT:
                raise ValueError(f"{archive} holds more than {ENTRY_LIMIT:,} files: do not use it.")
            name = _safe(info.name, archive)
            if info.isreg() and chosen(name):
                content = file.extractfile(info) or io.BytesIO()
                size -= len(contents.get(name, b""))
                contents[name] = checked(name, info.size, content)
                size += len(contents[name])
                if size > total:
                    raise TooMuch(f"more than {total:,} bytes come out of it")
    yield from sorted(contents.items())
