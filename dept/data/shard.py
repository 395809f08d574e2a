"""A shard of a remote split: its local file, and how it is fetched, held and removed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dept.data.fetch import ATTEMPTS, TIMEOUT, locked, publish, unreachable, work_folder
from dept.errors import DataError

if TYPE_CHECKING:  # it imports torchvision and transformers, and a check of a yaml reads no shard
    from streaming import Stream
    from streaming.base.format.mds import MDSReader

WORK = ".fetch-"


class Shard:
    """A shard of a remote split: its local file, if it was fetched, and its address.

    Args:
        reader: reader of its samples.
        directory: local folder of the split.
        remote: remote address of the split.
        number: number of the shard in the split.
    """

    def __init__(self, reader: MDSReader, directory: Path, remote: str, number: int) -> None:
        self.reader = reader
        self.path = directory / reader.raw_data.basename
        self.bytes = reader.get_max_size()
        """Bytes on disk, including the packed file while it is unpacked."""
        self.address = f"{remote}/{(reader.zip_data or reader.raw_data).basename}"
        self._remote = remote
        self._work = directory / f"{WORK}{number:05}"

    def is_whole(self) -> bool:
        """Whether the local file exists with all its bytes."""
        try:
            return self.path.stat().st_size == self.reader.raw_data.bytes
        except FileNotFoundError:
            return False

    def hold(self) -> int | None:
        """Keep other processes from removing the file.

        Returns:
            A descriptor that releases it when closed; ``None`` if there is no local file.
        """
        return locked(self.path, fcntl.LOCK_SH) if self.is_whole() else None

    def remove(self) -> None:
        """Remove the file, unless another process holds it."""
        handle = locked(self.path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if handle is not None:
            self.path.unlink()
            os.close(handle)

    def connect(self) -> Stream:
        """Make the argument of ``fetch``: a client for the remote, usable for all its shards."""
        from streaming import Stream

        stream = Stream(remote=self._remote, local=str(self._work), keep_zip=False)
        stream.apply_default(stream_options(keep_zip=False))
        return stream

    def fetch(self, stream: Stream) -> None:
        """Fetch the file, which gets its name when it is whole.

        Raises:
            DataError: it cannot be fetched, or is not the file that the index describes.
        """
        from streaming.base.hashing import get_hash

        basename, raw = self.reader.raw_data.basename, self.reader.raw_data
        with work_folder(self._work):
            if self.is_whole():  # another process fetched it while this one waited for the folder
                return
            stream.remote, stream.local = self._remote, str(self._work)
            try:
                stream.prepare_shard(self.reader)
            except Exception as error:  # each service has its own
                raise unreachable(self.address, error) from error
            fetched = self._work / basename
            same = fetched.stat().st_size == raw.bytes
            for algorithm, digest in raw.hashes.items():
                same = same and get_hash(algorithm, fetched.read_bytes()) == digest
            if not same:
                raise DataError(
                    f"{self.address} is cut short or of another version of the corpus than "
                    f"{self._work.parent}/index.json: correct it there, or remove "
                    f"{self._work.parents[3]} here to take the version of train_loader.remote"
                )
            publish(fetched, self.path)


def stream_options(*, keep_zip: bool) -> dict[str, Any]:
    """What a ``Stream`` takes from its data set, which does not exist here."""
    return {
        "split": "",
        "download_retry": ATTEMPTS,
        "download_timeout": TIMEOUT,
        "validate_hash": None,
        "keep_zip": keep_zip,
    }
