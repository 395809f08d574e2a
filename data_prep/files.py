"""Files that are either whole or not there: atomic writes, compressed parts of text."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from dept.checkpoint import durable

_encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes one for each call

WORK = ".work"  # directory of unfinished files beside finished ones; emptied when a run starts


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, in the order of its keys."""
    durable.write(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any | None:
    """Content of a JSON file, or None when there is none (a file of ours that exists is whole)."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def publish_directory(temporary: Path, final: Path) -> None:
    """Renames a finished directory into place.

    What is there already is kept: content is a function of the inputs, so it is the same.
    """
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        shutil.rmtree(temporary)
    else:
        os.replace(temporary, final)


class TextWriter:
    """Writes documents to a `.jsonl.zst` part; the file appears under its name on `commit`."""

    def __init__(self, path: Path, work: Path):
        self.path = path
        self.documents = 0
        self.bytes = 0  # UTF-8 bytes of the documents
        work.mkdir(parents=True, exist_ok=True)
        self._temporary = work / f"{'-'.join(path.parts[-4:])}.{os.getpid()}"
        self._file = self._temporary.open("wb")
        self._stream = zstandard.ZstdCompressor(level=3).stream_writer(self._file, closefd=False)

    def write(self, text: str, size: int) -> None:
        """Appends a document of `size` UTF-8 bytes."""
        self._stream.write((_encode({"text": text}) + "\n").encode())
        self.documents += 1
        self.bytes += size

    def commit(self) -> None:
        """Makes the part visible; a part without documents leaves no file."""
        self._stream.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self.documents:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink()


def open_binary(path: Path) -> tuple[BinaryIO, BinaryIO]:
    """Opens a file, decompressing by its suffix (.gz, .zst).

    Returns:
        The stream of its content, and the raw file, whose position tells how much has been read.
    """
    raw = path.open("rb")
    if path.suffix == ".gz":
        import gzip

        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 20), raw
    if path.suffix == ".zst":
        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return io.BufferedReader(reader, 1 << 20), raw
    return raw, raw


def read_texts(path: Path) -> Iterator[str]:
    """Documents of a part that TextWriter wrote."""
    stream, raw = open_binary(path)
    with raw, stream:
        for line in stream:
            yield json.loads(line)["text"]
