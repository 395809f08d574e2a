"""The common part of all readers of text: rows become documents, bad ones are refused or skipped.

A reader has a `position`, from which it can start again, so that stage 1 can be resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dept.data_prep.corpus import Source
from dept.errors import DataError


class Document(NamedTuple):
    """A document and its properties for stage 1."""

    text: str
    data: bytes  # the same as UTF-8
    split: str | None  # train or val where the source decides it itself, else None


class BadDocument(Exception):
    """Text that cannot be used; the message says why."""


class TooLong(BadDocument):
    """Text beyond max_document_bytes."""


class Reader:
    """Iterates over the good documents of a source; subclasses yield rows.

    Attributes:
        skipped: bad documents left out so far (`bad_documents: skip`).
        read: documents seen so far, bad and filtered ones among them.
    """

    def __init__(self, source: Source):
        self.source = source
        self.read = 0
        self.skipped = 0
        self._bytes = 0
        self._seen: dict[str, set[str]] = {key: set() for key in source.filter}

    def __iter__(self) -> Iterator[Document]:
        for where, split, content in self._rows():
            self.read += 1
            try:
                text = self._text(content, where)
                if text is None or not text.strip():
                    continue
                document = self._document(text, split)
                self._bytes += len(document.data)
                yield document
            except BadDocument as bad:
                if self.source.bad_documents == "refuse":
                    fix = "raise that" if isinstance(bad, TooLong) else "correct it"
                    raise DataError(
                        f"Source {self.source.name}: {where} {bad}; {fix}, or leave such "
                        f"documents out with `bad_documents: skip` in {self.source.name}."
                    ) from None
                self.skipped += 1

    def position(self) -> Any:
        """The position after the last document, as JSON."""
        raise NotImplementedError

    def consumed(self) -> int:
        """Bytes read so far, of text or of files, as `total` counts; for progress alone."""
        return self._bytes

    def total(self) -> int | None:
        """Bytes to read in all, None if unknown."""
        return self.source.split.train_bytes

    def _rows(self) -> Iterator[tuple[str, str | None, Any]]:
        """Yields (where it is, for messages; split or None; bytes, text or a row)."""
        raise NotImplementedError

    def _text(self, content: Any, where: str) -> str | None:
        """Text of a row, None when the filter drops it."""
        if isinstance(content, bytes):
            if len(content) > self.source.max_document_bytes:
                raise self._too_long()  # and it is cut there, perhaps in a character
            try:
                return content.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = content[error.start]
                raise BadDocument(f"is not UTF-8 (byte 0x{byte:02x} at {error.start})") from None
        if isinstance(content, str):
            return content
        for key, wanted in self.source.filter.items():
            value = _column(content, key)
            if len(self._seen[key]) < 8:
                self._seen[key].add(str(value))
            if value not in (wanted if isinstance(wanted, list) else [wanted]):
                return None
        text = _column(content, self.source.column)
        if isinstance(text, str):
            return text
        if text is None and self.source.column not in content:
            raise DataError(
                f"Source {self.source.name}: {where} has no column {self.source.column!r}, it has "
                f"{', '.join(map(str, content))}: name the one with the text as `column:`."
            )
        raise BadDocument(f"has {type(text).__name__} in column {self.source.column!r}, not text")

    def _document(self, text: str, split: str | None) -> Document:
        if "\0" in text:
            raise BadDocument("holds a NUL character, so it may be no text file")
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            raise BadDocument("holds half a surrogate pair, which UTF-8 cannot write") from None
        if len(data) > self.source.max_document_bytes:
            raise self._too_long()
        return Document(text, data, split)

    def _too_long(self) -> BadDocument:
        limit = self.source.max_document_bytes
        return TooLong(f"is longer than max_document_bytes ({limit:,} bytes)")

    def nothing(self) -> str:
        """Why there is no document, for a message."""
        if self.source.filter and self.read:
            seen = "; ".join(f"{k} is {', '.join(sorted(v))}" for k, v in self._seen.items())
            return f"none of its {self.read} documents passes the filter ({seen})"
        return f"it has no text in {self.read} documents" if self.read else "it is empty"


def _column(row: Any, name: str) -> Any:
    """Value of column `a.b`: the column of that name, or b inside a; None when there is none."""
    if isinstance(row, Mapping) and name in row:
        return row[name]
    for key in name.split("."):
        row = row.get(key) if isinstance(row, Mapping) else None
    return row
