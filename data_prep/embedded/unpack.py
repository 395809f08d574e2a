"""Compressed bytes from elsewhere, unpacked within limits of what comes out, and of memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

MEMBER_LIMIT = 128 * 2**20
"""Bytes that one file of an archive may have, unpacked; `max_member_bytes` of a source."""

ARCHIVE_LIMIT = 4 * 2**30
"""Bytes that an archive may have in all, unpacked; `max_archive_bytes` of a source."""

ENTRY_LIMIT = 200_000  # files of an archive: each costs memory, be it empty
XZ_MEMORY = 256 * 2**20  # for the dictionary of an xz stream, which may ask for 4 GiB
NAME_LIMIT = 1024  # characters of a name
CHUNK = 1 << 18

_FORMATS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


class TooMuch(ValueError):
    """More comes out of compressed bytes than is allowed."""


class Damaged(ValueError):
    """A compressed stream is cut short or altered."""


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise Damaged(f"the compressed stream is damaged: {error}") from None


class Unpacked(io.RawIOBase):
    """What comes out of a stream, compressed by its first bytes or not; no more than a limit.

    Args:
        packed: the stream.
        limit: bytes that may come out.
        largest: bytes that may be read at once: who asks for more believed a header that lies.
    """

    def __init__(self, packed: IO[bytes], limit: int, largest: int) -> None:
        self._limit, self._largest, self._position = limit, largest, 0
        head = packed.read(1 << 10)
        packed.seek(0)
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
        """Skip forward; there is no way back."""
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
    """The bytes of a .gz, .bz2 or .xz stream, or the data as they are.

    Raises:
        TooMuch: more than ``limit`` bytes come out.
        Damaged: the stream is.
    """
    if not data.startswith(tuple(_FORMATS)):
        return data
    return Unpacked(io.BytesIO(data), limit, limit + 1).read()
