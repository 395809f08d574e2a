"""Validation text of a prepared corpus, as text: what tokenizers are compared on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dept.data.corpus import PreparedCorpus
from dept.data_prep.files import read_texts
from dept.errors import DataError


@dataclass(frozen=True)
class Document:
    """A document, or the beginning of one.

    Attributes:
        text: text of the document.
        whole: whether the text is all of the document.
    """

    text: str
    whole: bool


def documents(
    corpus: PreparedCorpus, source: str, limit: int | None = None, split: str = "val"
) -> list[Document]:
    """Documents of a source that training never sees.

    Args:
        corpus: that has the source.
        source: held-out ones too.
        limit: UTF-8 bytes in all. Each document is cut to the same length, which is the largest
            that keeps within it, so that all of them count.
        split: ``val``, or ``train``.

    Raises:
        DataError: the text is not here; shards alone do not do.
    """
    folder = corpus.directory / source / "text" / split
    files = sorted(folder.glob("*.jsonl.zst"))
    texts = [text for file in files for text in read_texts(file)]
    if not texts:
        raise DataError(
            f"{folder} holds no text: prepare corpus {corpus.name} on this machine, with "
            f"data_prep/prepare.py"
        )
    if limit is None:
        return [Document(text, True) for text in texts]
    length = _length(sorted(len(text.encode()) for text in texts), limit)
    return [d for text in texts if (d := _beginning(text, length)).text]


def _length(sizes: list[int], limit: int) -> int:
    """The largest length to which documents of these ascending sizes can be cut."""
    left = limit
    for number, size in enumerate(sizes):
        share = left // (len(sizes) - number)
        if size > share:
            return share
        left -= size
    return sizes[-1]


def _beginning(text: str, size: int) -> Document:
    data = text.encode()
    if len(data) <= size:
        return Document(text, True)
    return Document(data[: _boundary(data, size)].decode(), False)


def pieces(text: str, size: int) -> Iterator[str]:
    """Non-overlapping pieces of at most ``size`` UTF-8 bytes, cut between characters.

    The rest, too short for a piece, is left out, and so are pieces of white space.

    Args:
        text: the text to cut.
        size: the most bytes of a piece.
    """
    data, begin = text.encode(), 0
    while len(data) - begin >= size:
        end = _boundary(data, begin + size)
        if end == begin:
            return  # not one character fits
        piece = data[begin:end].decode()
        if piece.strip():
            yield piece
        begin = end


def _boundary(data: bytes, place: int) -> int:
    """The last place between characters that is not beyond ``place``."""
    while 0 < place < len(data) and data[place] & 0xC0 == 0x80:
        place -= 1
    return place
