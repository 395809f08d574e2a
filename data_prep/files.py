"""Atomic writes of JSON, folders and compressed parts of text."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from dept.checkpoint import durable

_encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes one for each call

GATHERED = ".gathered"  # directory of text with near copies, until they are left out
WORK = ".work"  # directory of unfinished files beside finished ones; emptied when a run starts


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, in the order of its keys.

    Args:
        path: file to write.
        content: a value that JSON can hold.
    """
    durable.write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any | None:
    """Content of a JSON file, or None if there is no file (an existing file is complete)."""
    return json.loads(path.read_bytes()) if path.exists() else None


def publish_directory(temporary: Path, final: Path) -> None:
    """Renames a finished directory into place.

    An existing directory is kept: its content is the same, since it depends only on the inputs.

    Args:
        temporary: the finished directory; it is gone afterwards.
        final: its new path.
    """
    if final.exists():
        shutil.rmtree(temporary)
        return
    for path in filter(Path.is_file, temporary.rglob("*")):
        durable.sync(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(final)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines and says how many, unless the file exists.

    Args:
        path: file to write.
        rows: values that JSON can hold; not read if the file exists.
    """
    if path.exists():
        print(f"{path}: exists already")
        return
    lines = [_encode(row) for row in rows]
    durable.write(path, "\n".join(lines) + "\n")
    print(f"{path}: {len(lines):,} rows")


class TextPart:
    """A `.jsonl.zst` part that is being written, with its documents and their UTF-8 bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self.documents = self.bytes = 0
        self._stream = stream

    def write(self, text: str, size: int) -> None:
        """Appends a document of `size` UTF-8 bytes.

        Args:
            text: text of the document.
            size: length of the text in bytes of UTF-8.
        """
        self._stream.write((_encode({"text": text}) + "\n").encode())
        self.documents += 1
        self.bytes += size


@contextmanager
def text_part(path: Path) -> Iterator[TextPart]:
    """Writes a part, which appears under its name at the end; without documents it leaves no
    file."""
    compressor = zstandard.ZstdCompressor(level=3)
    with (
        durable.replacing(path) as temporary,
        zstandard.open(temporary, "wb", compressor) as stream,
    ):
        part = TextPart(stream)
        yield part
    if not part.documents:
        path.unlink()


def open_binary(path: Path) -> tuple[BinaryIO, BinaryIO]:
    """Opens a file, decompressing by its suffix (.gz, .zst).

    Returns:
        The stream of its content, and the raw file, whose position is how much has been read.
    """
    raw = path.open("rb")
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 20), raw
    if path.suffix == ".zst":
        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return io.BufferedReader(reader, 1 << 20), raw
    return raw, raw


def read_texts(path: Path) -> Iterator[str]:
    """Documents of a part."""
    stream, raw = open_binary(path)
    with raw, stream:
        for line in stream:
            yield json.loads(line)["text"]
