"""A corpus at a remote address: its small files, and folders that hold what is half fetched."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dept.data.corpus import GLOBAL, SPLITS, described
from dept.errors import ConfigError, DataError

ATTEMPTS = 2
TIMEOUT = 60.0  # seconds without an answer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SOURCE_FILES = ("stats.json", "counts.npy", *(f"{split}/index.json" for split in SPLITS))


def fetch_corpus(
    remote: str,
    root: str | Path,
    corpus: str,
    sources: Collection[str] | None = None,
    *,
    own_tokenizers: bool = False,
    held_out: bool = False,
) -> None:
    """Fetch what of a corpus must be here before anything is read: all but its shards.

    Files that are here already stay as they are, and if all are, nothing slow is imported. Several
    processes may do this for the same ``root`` at once.

    Args:
        remote: folder or address that holds ``data/`` and ``tokenizers/``.
        root: folder to fetch into, under the same names; made if need be.
        corpus: name of the corpus.
        sources: names of sources (those that it does not have are ignored); all by default.
        own_tokenizers: as written with the sources' own tokenizers, where they have one, not with
            the global one.
        held_out: the held-out sources too, written with the global tokenizer.

    Raises:
        ConfigError: ``remote`` is ``root``, whose files must not be taken for copies.
        DataError: a file cannot be fetched.
    """
    data = Path("data", corpus)
    if (Path(remote) / data).resolve() == (Path(root) / data).resolve():
        raise ConfigError(
            f"train_loader.remote is {remote!r}, which holds the same {data} as train_loader.root: "
            "leave remote out, or set root to a folder to fetch into"
        )
    _fetch(remote, Path(root), data, [data / "corpus.json"])
    content = described(Path(root) / data / "corpus.json", corpus)
    folders = {
        data / name / (name if own_tokenizers else GLOBAL)
        for name in content["sources"]
        if (sources is None or name in sources)
        and (not own_tokenizers or name in content["tokenizers"])
    }
    if held_out:
        folders |= {data / name / GLOBAL for name in content["held_out"]}
    files = [
        Path("tokenizers", corpus, name, file)
        for name in content["tokenizers"]
        for file in TOKENIZER_FILES
    ]
    files += [folder / file for folder in sorted(folders) for file in SOURCE_FILES]
    _fetch(remote, Path(root), data, files)


def address_of(remote: str, split: Path) -> str:
    """The address below ``remote`` of ``<root>/data/<corpus>/<source>/<tokenizer>/<split>``."""
    return "/".join([remote.rstrip("/"), *split.parts[-5:]])


def unreachable(address: str, error: Exception) -> DataError:
    """What to say of a file that could not be fetched."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"{address} cannot be fetched ({reason}): correct train_loader.remote, or for a bucket its "
        "credentials and S3_ENDPOINT_URL"
    )


def locked(path: Path, operation: int) -> int | None:
    """Lock a file or folder with ``flock``, which the kernel releases when this process dies.

    The locks of ``filelock`` are files beside what they protect, one for each shard here, and it
    shares a lock between readers through an SQLite database alone.

    Args:
        path: the file or folder itself, so that no lock files are left behind.
        operation: ``fcntl.LOCK_EX`` or ``fcntl.LOCK_SH``, with ``fcntl.LOCK_NB`` not to wait.

    Returns:
        A descriptor, to be closed by the caller; ``None`` if ``path`` is not there, or no longer
        when the lock is had, or if the lock is another's and not to be waited for.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, operation)
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(handle)
    return None


@contextmanager
def work_folder(folder: Path) -> Iterator[None]:
    """An empty folder to fetch into, held by one thread of one process at a time, then removed.

    What a killed process left in it is cleared away, so that it never passes for a whole file.
    """
    while (handle := locked(folder, fcntl.LOCK_EX)) is None:
        with suppress(FileExistsError):  # raised if another process removes it at that moment
            folder.mkdir(parents=True, exist_ok=True)
    try:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def clear_abandoned(folder: Path) -> None:
    """Remove a work folder whose process died; one at work is left alone."""
    handle = locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if handle is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def publish(fetched: Path, path: Path) -> None:
    """Give a whole file its name, after its bytes are on disk."""
    with fetched.open("rb") as file:
        os.fsync(file.fileno())
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(fetched, path)


def _fetch(remote: str, root: Path, data: Path, files: Sequence[Path]) -> None:
    if all((root / file).is_file() for file in files):
        return
    from streaming.base.storage import CloudDownloader
    from streaming.base.util import retry

    work = root / data / ".fetch"
    with work_folder(work):
        try:
            downloader = CloudDownloader.get(remote)
        except (ValueError, ImportError) as error:
            raise unreachable(remote, error) from error
        for number, file in enumerate(files):
            if (root / file).is_file():  # another process has fetched it by now
                continue
            address, fetched = f"{remote.rstrip('/')}/{file.as_posix()}", work / str(number)
            download = retry(clean_up_fn=downloader.clean_up, num_attempts=ATTEMPTS)(
                downloader.download
            )
            try:
                download(address, str(fetched), TIMEOUT)
            except Exception as error:  # each service has its own
                raise unreachable(address, error) from error
            publish(fetched, root / file)
