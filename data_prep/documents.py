"""The documents of a source, one after another: local files, the Hugging Face hub, or a package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dept.data_prep.corpus import Source
from dept.data_prep.local_files import FileReader, find_files
from dept.data_prep.pool import Task
from dept.data_prep.reader import Reader
from dept.errors import DataError


class HubReader(Reader):
    """A data set of the Hugging Face hub in streaming mode; position is the state of the `datasets`
    stream.

    Args:
        source: the source, with its `hub`.
        position: where to start, as an earlier reader had it; None for the start.
    """

    def __init__(self, source: Source, position: Any = None):
        super().__init__(source)
        hub = source.hub
        self._parts = [("val", hub.val_split), ("train", hub.split)]
        if not hub.val_split:
            self._parts = [(None, hub.split)]
        self._position = position or {"part": 0, "state": None}
        self._stream: Any = None
        self._part = self._position["part"]

    def position(self) -> Any:
        return {"part": self._part, "state": self._stream.state_dict() if self._stream else None}

    def _rows(self) -> Iterator[tuple[str, str | None, Any]]:
        import datasets

        hub = self.source.hub
        state = self._position["state"]
        for part in range(self._position["part"], len(self._parts)):
            self._part = part
            split, name = self._parts[part]
            try:
                self._stream = datasets.load_dataset(
                    hub.name,
                    hub.config,
                    split=name,
                    revision=hub.revision,
                    data_files=hub.data_files,
                    streaming=True,
                    trust_remote_code=False,
                )
                if state:
                    self._stream.load_state_dict(state)
                    state = None
                for row in self._stream:
                    yield f"a row of {hub.name} ({name})", split, row
            except DataError:
                raise
            except Exception as error:  # datasets and its file systems raise errors of many kinds
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise DataError(
                    f"Source {self.source.name}: data set {hub.name} ({hub.config or 'no config'}, "
                    f"split {name}) cannot be read ({type(error).__name__}: {reason}): "
                    "check name, config and split, and the network."
                ) from None


class PackageReader(Reader):
    """Documents of packages (data_prep/embedded/packages.py); position is their number.

    Args:
        source: the source, with its `package`.
        cache: directory of downloads.
        position: where to start, as an earlier reader had it; None for the start.
    """

    def __init__(self, source: Source, cache: Path, position: Any = None):
        super().__init__(source)
        self._cache = cache
        self._start = position["documents"] if position else 0
        self._number = 0

    def position(self) -> Any:
        return {"documents": self._number}

    def _rows(self) -> Iterator[tuple[str, str | None, Any]]:
        from dept.data_prep.embedded.packages import package_documents

        try:
            for text in package_documents(self.source.package, self._cache):
                self._number += 1
                if self._number > self._start:
                    yield f"document {self._number} of {self.source.package}", None, text
        except ModuleNotFoundError as error:
            raise DataError(
                f"Source {self.source.name}: {error}; install requirements.txt (`make setup`)."
            ) from None
        except (ValueError, RuntimeError, OSError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"Source {self.source.name}: {error}") from None


def packages_of(source: Source) -> dict[Any, dict[str, Any]]:
    """The packages that a source is read from, by their names; none if it is not from packages.

    Args:
        source: the source.

    Raises:
        DataError: a key of it is missing or unknown.
    """
    from dept.data_prep.embedded.packages import name_of, parts_of

    if not source.package:
        return {}
    try:
        parts, originals = parts_of(source.package)
        return {(*name_of(part), part.get("sha256")): part for part in (*parts, *originals)}
    except ValueError as error:
        raise DataError(f"Source {source.name}: {error}") from None


def fetch_package(task: Task, source: str, part: dict[str, Any], cache: Path) -> None:
    """Downloads a package, unless the cache has it.

    Args:
        task: reports progress, in bytes of the archive.
        source: name of the source that needs it, for the error.
        part: a value that packages_of gives.
        cache: directory of downloads.

    Raises:
        DataError: it cannot be had.
    """
    from dept.data_prep.embedded.packages import fetch_part

    try:
        task.report(fetch_part(part, cache).stat().st_size)
    except (ValueError, RuntimeError, OSError) as error:
        raise DataError(f"Source {source}: {error}") from None


def open_source(
    source: Source, folders: tuple[Path, ...], cache: Path, position: Any = None
) -> Reader:
    """Open the reader of a source, at its start or at an earlier position of the reader.

    Args:
        source: the source to read.
        folders: where relative paths of `files` are looked for.
        cache: directory of downloads of packages.
        position: where to start, as an earlier reader had it; None for the start.

    Raises:
        DataError: a path or glob of `files` matches nothing.
    """
    if source.files:
        return FileReader(source, find_files(source, folders), position)
    if source.hub:
        return HubReader(source, position)
    return PackageReader(source, cache, position)
