"""Unpack untrusted compressed bytes within limits of size and memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MEMBER_LIMIT = 128 * 2**20
"""Bytes that one file of an archive may have, unpacked; `max_member_bytes` of a source."""

ARCHIVE_LIMIT = 4 * 2**30
"""Bytes that an archive may have in all, unpacked; `max_archive_bytes` of a source."""

ENTRY_LIMIT = 200_000  # files of an archive: each needs memory, even if it is empty
XZ_MEMORY = 256 * 2**20  # for the dictionary of an xz stream, which may ask for 4 GiB
NAME_LIMIT = 1024  # characters of a name
CHUNK = 1 << 18

_FORMATS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


class TooMuch(ValueError):
    """Compressed bytes unpack to more than is allowed."""


class Damaged(ValueError):
    """A compressed stream is cut short or altered."""


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise Damaged(f"the compressed stream is damaged: {error}") from None


class Unpacked(io.RawIOBase):
    """The unpacked content of a stream, up to a limit; its first bytes tell its compression.

    Args:
        packed: the stream, at its start.
        limit: the most bytes of content.
        largest: the most bytes of one read: a larger request comes from a false header.
    """

    def __init__(self, packed: io.BufferedReader, limit: int, largest: int) -> None:
        self._limit, self._largest, self._position = limit, largest, 0
        head = packed.peek(1 << 10)[: 1 << 10]
        opener = next((f for magic, f in _FORMATS.items() if head.startswith(magic)), None)
        if opener is lzma.open:  # which takes no limit, so its first header is tried before
            with _damage():
                lzma.LZMADecompressor(memlimit=XZ_MEMORY).decompress(head, max_length=1)
        self._stream = opener(packed, "rb") if opener else packed

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Skip forward; seeking back is not possible.

        Args:
            offset: position in the content, in bytes from its start.
            whence: must be io.SEEK_SET.

        Returns:
            The position reached, in bytes; the end of the content if that is earlier.

        Raises:
            io.UnsupportedOperation: the offset is before the position, or ``whence`` is another.
            TooMuch: the limit is passed.
            Damaged: the stream is.
        """
        if whence != io.SEEK_SET or offset < self._position:
            raise io.UnsupportedOperation("a stream is read front to back")
        while self._position < offset and self.read(min(offset - self._position, CHUNK)):
            pass
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes, fewer at the end alone.

        Raises:
            TooMuch: the limit is passed.
            Damaged: the stream is.
        """
        if size > self._largest:
            raise TooMuch(f"it announces {size:,} bytes at once, more than {self._largest:,}")
        left = self._limit + 1 - self._position
        with _damage():
            data = self._stream.read(left if size < 0 else min(size, left))
        self._position += len(data)
        if self._position > self._limit:
            raise TooMuch(f"more than {self._limit:,} bytes come out of it")
        return data


def unpack(data: bytes, limit: int) -> bytes:
    """Unpack a .gz, .bz2 or .xz stream; other data is returned unchanged.

    Args:
        data: the stream, or other data.
        limit: the most bytes of content.

    Returns:
        The content.

    Raises:
        TooMuch: it unpacks to more than ``limit`` bytes.
        Damaged: the stream is.
    """
    if not data.startswith(tuple(_FORMATS)):
        return data
    stream = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
    return Unpacked(stream, limit, limit + 1).read()
