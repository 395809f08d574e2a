"""A corpus at a remote address: fetching its small files, and folders for partial downloads."""

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
    """Fetch the files of a corpus that are needed before training: all except its shards.

    Existing files are unchanged, and if all exist, nothing slow is imported. Several processes may
    call this for the same ``root`` at the same time.

    Args:
        remote: folder or address that holds ``data/`` and ``tokenizers/``.
        root: folder to fetch into, under the same names; made if it does not exist.
        corpus: name of the corpus.
        sources: names of sources (unknown names are ignored); all by default.
        own_tokenizers: fetch sources in the tokens of their own tokenizers, if they have one, and
            not in those of the global one.
        held_out: also fetch the held-out sources, in the tokens of the global tokenizer.

    Raises:
        ConfigError: ``remote`` is ``root``, whose files must not be treated as copies.
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
    """The address below ``remote`` of ``<root>/data/<corpus>/<source>/<tokenizer>/<split>``.

    Args:
        remote: ``train_loader.remote``, a folder or an address.
        split: local folder of the split, with the five last parts as above.
    """
    return "/".join([remote.rstrip("/"), *split.parts[-5:]])


def unreachable(address: str, error: Exception) -> DataError:
    """The error about a file that could not be fetched.

    Args:
        address: remote address of the file.
        error: what the client of the remote raised.

    Returns:
        The error, for the caller to raise.
    """
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"{address} cannot be fetched ({reason}): correct train_loader.remote, or for a bucket its "
        "credentials and S3_ENDPOINT_URL"
    )


def locked(path: Path, operation: int) -> int | None:
    """Lock a file or folder with ``flock``, which the kernel releases when this process dies.

    ``filelock`` is not used: it would leave a lock file beside each shard, and it can share a lock
    between readers only through an SQLite database.

    Args:
        path: the file or folder itself, so that no lock files are left behind.
        operation: ``fcntl.LOCK_EX`` or ``fcntl.LOCK_SH``, with ``fcntl.LOCK_NB`` not to wait.

    Returns:
        A descriptor, which the caller closes. ``None`` if ``path`` does not exist, or was removed
        before the lock was acquired, or with ``LOCK_NB`` if another process has the lock.
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
    """An empty folder to fetch into, locked by one thread of one process, and removed at the end.

    Files that a killed process left in it are removed, so that none is mistaken for a whole file.
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
    """Remove a work folder whose process died; a folder in use is kept."""
    handle = locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if handle is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def publish(fetched: Path, path: Path) -> None:
    """Rename a complete file to ``path``, after its bytes are on disk.

    Args:
        fetched: path of the complete file, on the same file system as ``path``.
        path: its final path; its folder is made if it does not exist.
    """
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
