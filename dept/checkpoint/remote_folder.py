"""A remote folder in one of Composer's object stores: its files, and uploads to it.

A thread uploads files in the order given, while training continues. A file that cannot be sent
delays those after it, so that no file is there without the files it refers to.
"""

from __future__ import annotations

import contextlib
import posixpath
import tempfile
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dept.checkpoint import durable
from dept.errors import ConfigError
from dept.log import log

if TYPE_CHECKING:
    from composer.utils import ObjectStore

ATTEMPTS = 4
"""Attempts of a transfer, in addition to the retries of the service's client."""

PAUSE = 1.0
"""Seconds before the second attempt; doubled before each further one."""

PATIENCE = 300.0
"""Seconds that a checkpoint waits for the files of other workers."""

_WRITTEN_BY_COMPOSER = ".credentials_validated_successfully"


class RemoteFolder:
    """A local folder and the remote one that it is sent to, with the same names in both.

    Args:
        folder: local folder; may not exist.
        address: any that Composer has an object store for, such as ``s3://bucket/folder``.

    Attributes:
        unsent: why the first waiting file could not be sent; ``None`` if there is no error.
    """

    def __init__(self, folder: str | Path, address: str) -> None:
        self.folder, self.address = Path(folder), address.rstrip("/")
        self.unsent: str | None = None
        self._queue: deque[tuple[str, str, tuple[str, ...]]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._names: set[str] | None = None

    # --- what is there ----------------------------------------------------------------------------

    @property
    def names(self) -> frozenset[str]:
        """Names of the remote files: the first listing, with the changes of this process since.

        Raises:
            ConfigError: the folder cannot be listed.
        """
        if self._names is None:
            self._names = self._listed()
        return frozenset(self._names)

    def list_again(self) -> None:
        """List the folder again for changes of other workers; no transfer may be in progress.

        If it cannot be listed now, the previous listing stays.
        """
        with contextlib.suppress(ConfigError):
            self._names = self._listed()

    def check(self) -> None:
        """Test before training whether files can be written to the remote folder.

        Raises:
            ConfigError: they cannot.
        """
        from composer.utils.file_helpers import validate_credentials

        try:
            self._try(lambda: validate_credentials(self._store, self._key(_WRITTEN_BY_COMPOSER)))
        except ConfigError:
            raise
        except Exception as error:  # each service has its own
            raise self._unreachable(error) from error

    def fetch(self, name: str, as_name: str | None = None) -> Path:
        """Fetch a file, which gets its name, or ``as_name``, when it is complete.

        Args:
            name: path of the file, relative to both folders.
            as_name: path of the local file, relative to the local folder; ``name`` by default.

        Returns:
            The path of the local file.

        Raises:
            ConfigError: it cannot be fetched.
        """
        path = self.folder / (as_name or name)
        try:
            with durable.replacing(path) as temporary:
                key, into = self._key(name), str(temporary)
                self._try(lambda: self._store.download_object(key, into, overwrite=True))
        except FileNotFoundError as error:
            raise self._unreachable(f"{name} is not there") from error
        except Exception as error:
            raise self._unreachable(error) from error
        return path

    # --- sending ----------------------------------------------------------------------------------

    def send(self, name: str, needs: Collection[str] = ()) -> None:
        """Queue a file to be sent after earlier ones, and after ``needs`` of other workers.

        Args:
            name: path of the file, relative to both folders.
            needs: names of remote files of other workers. The upload waits until they are there,
                and fails after ``PATIENCE`` seconds.
        """
        self._enqueue("send", name, tuple(needs))

    def remove(self, names: Iterable[str]) -> None:
        """Queue files to be removed, if Composer can remove files of this kind of store."""
        for name in names:
            self._enqueue("remove", name)

    def link(self, name: str, target: str) -> None:
        """Queue a file ``name.symlink`` that names ``target``, for Composer's ``load_path``.

        Args:
            name: name of the link, without its ending ``.symlink``.
            target: name of the remote file. If it is not there when the queue reaches the link, no
                link is written.
        """
        self._enqueue("link", f"{name}.symlink", (target,))

    def wait(self) -> bool:
        """Wait until all files are sent or one fails; returns whether all were sent."""
        while (thread := self._thread) is not None:
            thread.join()
        return not self._queue

    def wait_for(self, names: Collection[str]) -> None:
        """Wait until these files are sent, or one fails."""
        while (thread := self._thread) is not None and self._waits(names):
            thread.join(0.05)

    def _waits(self, names: Collection[str]) -> bool:
        with self._lock:
            return any(name in names for task, name, _ in self._queue if task == "send")

    def _enqueue(self, task: str, name: str, given: tuple[str, ...] = ()) -> None:
        with self._lock:
            self._queue.append((task, name, given))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                task, name, given = self._queue[0]
            try:
                getattr(self, f"_{task}")(name, given)
            except Exception as error:  # each service has its own
                self.unsent = (
                    f"{self.address}/{name} could not be written ({_reason(error)}): what was "
                    f"there is kept, and this one is in {self.folder}; check the connection"
                )
                log.warning(
                    f"{self.unsent}: training continues, and it is tried again with the next"
                )
                with self._lock:
                    self._thread = None
                return
            with self._lock:
                self._queue.popleft()

    def _send(self, name: str, needs: tuple[str, ...]) -> None:
        self._wait_for(needs)
        if (self.folder / name).is_file():  # otherwise it was outdated before it was sent
            self._upload(name, self.folder / name)

    def _link(self, name: str, target: tuple[str, ...]) -> None:
        if target[0] not in self.names:
            return
        with tempfile.NamedTemporaryFile("w", suffix=".symlink") as file:
            file.write(self._key(target[0]))
            file.flush()
            self._upload(name, Path(file.name))

    def _upload(self, name: str, path: Path) -> None:
        self._try(lambda: self._store.upload_object(self._key(name), str(path)))
        self._add(name)

    def _add(self, name: str) -> None:
        self._names = {*self.names, name}

    def _remove(self, name: str, _: tuple[str, ...]) -> None:
        from composer.utils import S3ObjectStore

        store = getattr(self._store, "s3_object_store", None) or self._store
        if isinstance(store, S3ObjectStore):
            key = store.get_key(self._key(name))
            self._try(lambda: store.client.delete_object(Bucket=store.bucket, Key=key))
        self._names = {*self.names} - {name}

    def _wait_for(self, names: tuple[str, ...]) -> None:
        """Wait for files that other workers send."""
        began, names_there = time.monotonic(), self._listed() if names else set()
        while missing := {*names} - names_there:
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError(f"{min(missing)} of another worker is not there")
            time.sleep(PAUSE)
            names_there = self._listed()

    # --- the store --------------------------------------------------------------------------------

    @cached_property
    def _store(self) -> ObjectStore:
        from composer.utils import maybe_create_object_store_from_uri

        try:
            store = maybe_create_object_store_from_uri(self.address)
        except Exception as error:
            raise self._unreachable(error) from error
        assert store is not None
        return store

    def _key(self, name: str) -> str:
        from composer.utils import parse_uri

        return posixpath.join(parse_uri(self.address)[2], name)

    def _listed(self) -> set[str]:
        within = self._key("")
        try:
            keys = self._try(lambda: self._store.list_objects(within or None))
        except ConfigError:
            raise
        except Exception as error:
            raise self._unreachable(error) from error
        return {key[key.find(within) + len(within) :] for key in keys if within in key}

    def _try(self, transfer: Any) -> Any:
        from composer.utils import retry

        return retry(Exception, num_attempts=ATTEMPTS, initial_backoff=PAUSE)(transfer)()

    def _unreachable(self, error: Exception | str) -> ConfigError:
        return ConfigError(
            f"save_folder {self.address} cannot be used ({_reason(error)}): correct it, or its "
            f"credentials and S3_ENDPOINT_URL"
        )


def _reason(error: Exception | str) -> str:
    return " ".join(str(error).split()) or type(error).__name__
