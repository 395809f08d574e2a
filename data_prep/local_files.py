"""Documents from local files: .txt, .jsonl (also with .gz or .zst after it), .parquet.

`datasets` is not used: its readers load a whole file into memory when rows differ in type, cannot
name the faulty line, and need five seconds of imports.
"""

from __future__ import annotations

import glob
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dept.data_prep.corpus import Source, format_of
from dept.data_prep.files import open_binary
from dept.data_prep.reader import BadDocument, Reader
from dept.errors import DataError


def find_files(source: Source, folders: tuple[Path, ...]) -> list[Path]:
    """Files of `files:`, sorted; a relative path is looked for in the folders, the first that has
    it counts.

    Args:
        source: the source, with its `files`.
        folders: where a relative path is looked for, in this order.

    Returns:
        Paths without duplicates, in the order of `files`, sorted within each pattern.

    Raises:
        DataError: a path or glob matches nothing.
    """
    found: list[Path] = []
    for pattern in source.files:
        for folder in folders:
            matches = [Path(m) for m in glob.glob(str(folder / pattern), recursive=True)]
            matches = sorted(m for m in matches if m.is_file())
            if matches:
                break
        else:
            places = " and ".join(str(f) for f in folders)
            raise DataError(
                f"{source.name}.files: {pattern} does not exist in {places}: correct the path."
            )
        found += [m for m in matches if m not in found]
    return found


class FileReader(Reader):
    """Local files, one after another; position is the file and the number of its rows.

    Args:
        source: the source of the files.
        files: the files, in the order of reading.
        position: where to start, as an earlier reader had it; None for the start.
    """

    def __init__(self, source: Source, files: list[Path], position: Any = None):
        super().__init__(source)
        self._files = files
        position = position or {"file": 0, "rows": 0}
        self._file, self._row, self._start = position["file"], position["rows"], position["rows"]
        self._before = sum(f.stat().st_size for f in files[: self._file])
        self._raw: Any = None

    def position(self) -> Any:
        return {"file": self._file, "rows": self._row}

    def consumed(self) -> int:
        return self._before + (self._raw.tell() if self._raw and not self._raw.closed else 0)

    def total(self) -> int:
        return sum(f.stat().st_size for f in self._files)

    def _rows(self) -> Iterator[tuple[str, str | None, Any]]:
        read = {".txt": self._txt, ".jsonl": self._jsonl, ".parquet": self._parquet}
        for index, path in enumerate(self._files[self._file :], self._file):
            skip, self._start = self._start, 0
            self._file, self._row = index, 0
            try:
                for where, content in read[format_of(path, self.source.name)](path):
                    self._row += 1
                    if self._row > skip:
                        yield where, None, content
            except (OSError, EOFError, ValueError) as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(
                    f"Source {self.source.name}: {path} cannot be read ({error}): "
                    "replace the file by a whole one."
                ) from None
            self._before += path.stat().st_size
            self._raw = None

    def _lines(self, path: Path, limit: int) -> Iterator[tuple[int, bytes]]:
        """Numbered lines; of one beyond the limit, no more than limit + 4 bytes.

        The rest of such a line is read only if the next one is asked for.
        """
        import zstandard

        stream, self._raw = open_binary(path)
        most = self.source.max_unpacked_bytes if stream is not self._raw else None
        size = 0

        def read() -> bytes:
            nonlocal size
            piece = stream.readline(limit + 4)  # a byte order mark may go
            size += len(piece)
            if most is not None and size > most:
                raise DataError(
                    f"Source {self.source.name}: {path} unpacks to more than {most:,} bytes: leave "
                    f"it out, or raise max_unpacked_bytes in {self.source.name}."
                )
            return piece

        with self._raw, stream:
            try:
                for number in itertools.count(1):
                    line = rest = read()
                    if not line:
                        return
                    if number == 1:
                        line = line.removeprefix(b"\xef\xbb\xbf")  # byte order mark
                    yield number, line
                    while len(rest) > limit and not rest.endswith(b"\n"):
                        rest = read()
            except (zstandard.ZstdError, zlib.error) as error:
                raise ValueError(error) from None

    def _txt(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Documents; one that is too long is cut just beyond the limit, so that it is refused."""
        limit = self.source.max_document_bytes
        groups = {"paragraph": lambda line: bool(line[1].strip()), "line": lambda line: line[0]}
        group_of = groups.get(self.source.document)  # all of a file is one group
        for _, group in itertools.groupby(self._lines(path, limit), group_of or (lambda line: 0)):
            lines: list[bytes] = []
            size = first = 0
            for number, line in group:
                blank = not line.strip()
                if blank and (not lines or size > limit):  # of those beyond it, none need be kept
                    continue
                first = first or number
                lines.append(line)
                size += len(line) - line.endswith(b"\r\n")
                if size - len(line) + len(line.rstrip(b"\r\n")) > limit and not blank:
                    break  # it is refused before all the rest is read
            if lines:
                text = b"".join(lines).replace(b"\r\n", b"\n").strip(b"\n")
                yield f"{path} line {first}", text

    def _jsonl(self, path: Path) -> Iterator[tuple[str, Any]]:
        limit = 6 * self.source.max_document_bytes + (1 << 16)  # \uXXXX takes six bytes
        for number, line in self._lines(path, limit):
            where = f"{path} line {number}"
            if not line.strip():
                continue
            if len(line) > limit:
                yield where, self._too_long()
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                yield where, line  # becomes the message about UTF-8
                continue
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"Source {self.source.name}: {where} is not JSON ({error}): correct the line."
                ) from None
            if not isinstance(row, Mapping):
                raise DataError(
                    f"Source {self.source.name}: {where} is {type(row).__name__}, no JSON object: "
                    f"write one object with the text as {self.source.column!r} a line."
                )
            yield where, row

    def _parquet(self, path: Path) -> Iterator[tuple[str, Any]]:
        import pyarrow.parquet

        with path.open("rb") as self._raw, pyarrow.parquet.ParquetFile(self._raw) as file:
            names = file.schema_arrow.names
            columns = {c.split(".")[0] for c in (self.source.column, *self.source.filter)}
            columns |= {c for c in (self.source.column, *self.source.filter) if c in names}
            # A column that is missing is reported by _text, with the names there are.
            wanted = [n for n in names if n in columns] if columns & set(names) else names
            batches = file.iter_batches(batch_size=256, columns=wanted)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, content in enumerate(rows, 1):
                yield f"{path} row {number}", content

    def _text(self, content: Any, where: str) -> str | None:
        if isinstance(content, BadDocument):
            raise content
        return super()._text(content, where)
