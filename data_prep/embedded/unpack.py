"""Compressed bytes from elsewhere, unpacked within limits of what comes out, and of memory."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

MEMBER_LIMIT = 128 * 2**20
"""Bytes that one file of an archive may have, unpacked; `max_member_bytes` of a source."""

ARCHIVE_LIMIT = 4 * 2**30
"""Bytes that an archive may have in all, unpacked; `max_archive_bytes` of a source."""

ENTRY_LIMIT = 200_000  # files of an archive: each costs memory, be it empty
XZ_MEMORY = 256 * 2**20  # for the dictionary of an xz stream, which may ask for 4 GiB
NAME_LIMIT = 1024  # characters of a name
CHUNK = 1 << 18

_FORMATS = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}


class TooMuch(ValueError):
    """More comes out of compressed bytes than is allowed."""


class Damaged(ValueError):
    """A compressed stream is cut short or altered."""


def compression(head: bytes) -> str | None:
    """``gz``, ``bz2`` or ``xz``, by the first bytes of a stream; ``None`` for any other."""
    return next((name for magic, name in _FORMATS.items() if head.startswith(magic)), None)


def _decompressor(kind: str) -> Any:
    if kind == "gz":
        return zlib.decompressobj(wbits=31)
    return bz2.BZ2Decompressor() if kind == "bz2" else lzma.LZMADecompressor(memlimit=XZ_MEMORY)


class Unpacked(io.RawIOBase):
    """What comes out of a stream, compressed by its first bytes or not; no more than a limit.

    Args:
        packed: the stream.
        limit: bytes that may come out.
        largest: bytes that may be read at once: who asks for more believed a header that lies.
    """

    def __init__(self, packed: BinaryIO, limit: int, largest: int) -> None:
        self._packed, self._limit, self._largest = packed, limit, largest
        self._pieces = self._unpack()
        self._left = b""
        self._position = 0

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
        pieces, missing = [], self._limit + 1 if size < 0 else size
        while missing > 0:
            if not self._left:
                self._left = next(self._pieces, b"")
                if not self._left:
                    break
            piece, self._left = self._left[:missing], self._left[missing:]
            pieces.append(piece)
            missing -= len(piece)
            self._position += len(piece)
            if self._position > self._limit:
                raise TooMuch(f"more than {self._limit:,} bytes come out of it")
        return b"".join(pieces)

    def _unpack(self) -> Iterator[bytes]:
        data = self._packed.read(CHUNK)
        kind = compression(data)
        while data and kind is None:
            yield data
            data = self._packed.read(CHUNK)
        while data:  # a stream may follow another
            decompressor = _decompressor(kind or "")
            try:
                while not decompressor.eof:
                    out = decompressor.decompress(data, CHUNK)
                    data = decompressor.unconsumed_tail if kind == "gz" else b""
                    if out:
                        yield out
                    hungry = kind == "gz" or decompressor.needs_input
                    if not decompressor.eof and not data and (hungry or not out):
                        data = self._packed.read(CHUNK)
                        if not data:
                            raise Damaged("the compressed stream ends early")
            except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
                raise Damaged(f"the compressed stream is damaged: {error}") from None
            data = decompressor.unused_data or self._packed.read(CHUNK)
            if compression(data) != kind:
                return  # padding


def unpack(data: bytes, limit: int) -> bytes:
    """The bytes of a .gz, .bz2 or .xz stream, or the data as they are.

    Raises:
        TooMuch: more than ``limit`` bytes come out.
        Damaged: the stream is.
    """
    if compression(data) is None:
        return data
    return Unpacked(io.BytesIO(data), limit, limit + 1).read()
