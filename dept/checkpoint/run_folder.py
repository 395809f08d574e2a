"""The folder of a run as an earlier process left it: its checkpoints, settings and lock."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout
from omegaconf import OmegaConf

from dept.checkpoint import durable
from dept.checkpoint.source_files import FOLDER, SourceFiles
from dept.errors import ConfigError

# Settings that change the numbers of a run. A resumed run must not change them.
SHAPING = (
    "seed",
    "model",
    "tokenizer",
    "optimizer",
    "scheduler",
    "algorithms",
    "train_loader",
    "global_train_batch_size",
    "max_seq_len",
    "precision",
    "callbacks.start_from",
    "callbacks.active_forgetting",
    "callbacks.frozen_start",
)

# Where data comes from, how much of it is kept, how long to wait, and which kernel computes
# attention and loss depend on the machine. What is evaluated does not change training. A run that
# stopped at a fault may continue with `leave_out`.
NOT_SHAPING = (
    "train_loader.remote",
    "train_loader.cache_limit",
    "algorithms.dept.worker_timeout",
    "algorithms.dept.icl_source",
    "model.trust_remote_code",
    "model.attn_config.attn_impl",
    "model.attn_implementation",
    "model.loss_fn",
    "algorithms.dept.upload_sources",
    "algorithms.dept.faults",
    "algorithms.dept.outlier_multiple",
    "algorithms.dept.allow_source_changes",
    "algorithms.dept.federation.silo",
    "algorithms.dept.federation.socket",
    "algorithms.dept.federation.metrics",
    "algorithms.dept.federation.leave",
    "algorithms.dept.federation.share_embedding",
    "algorithms.dept.federation.min_sources",
    "algorithms.dept.federation.round_timeout",
    "algorithms.dept.federation.grace",
)

SERVER_MODEL = "model.safetensors"
"""The global model in the folder of a server of a federation."""

# What `algorithms.dept.allow_source_changes` allows to change.
_OF_SOURCES = ("train_loader.sources", "algorithms.dept.sources_per_round")

# Batch counts depend on the number of workers, so names have -w<workers> if there are several.
CHECKPOINT = re.compile(r"ep(\d+)-ba(\d+)(?:-w(\d+))?-rank\d+\.pt")


def checkpoint_name(workers: int) -> str:
    """``save_filename`` of a job; different numbers of workers have different names."""
    return "ep{epoch}-ba{batch}" + (f"-w{workers}" if workers > 1 else "") + "-rank{rank}.pt"


def folder_of(config: Mapping[str, Any]) -> Path:
    """The folder of ``config.yaml`` and ``summary.json``, which ``run_files`` writes."""
    options = (config.get("callbacks") or {}).get("run_files") or {}
    return Path(options.get("folder", "runs/{run_name}").format(run_name=config.get("run_name")))


def checkpoints_of(config: Mapping[str, Any]) -> Path | None:
    """The local folder of checkpoints; in the folder of the run, if ``save_folder`` is remote."""
    folder = config.get("save_folder")
    if remote_of(config) is not None:
        return folder_of(config) / "checkpoints"
    return Path(folder) if folder else None


def remote_of(config: Mapping[str, Any]) -> str | None:
    """The address that checkpoints are sent to, if ``save_folder`` is one."""
    folder = str(config.get("save_folder"))
    return folder.format(run_name=config.get("run_name")) if "://" in folder else None


def progress(name: str) -> tuple[int, int]:
    """How far training was at a checkpoint: its round, and the batches of all workers."""
    match = CHECKPOINT.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2]) * int(match[3] or 1)


def find_checkpoint(path: str | Path) -> Path:
    """Find a checkpoint: the file itself, or the newest one in a folder of checkpoints.

    The folder of a server of a federation has its global model in one file.

    Raises:
        ConfigError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path.resolve()  # the files of its sources are beside the file, not beside a link
    if (path / SERVER_MODEL).is_file() and (path / "config.yaml").is_file():
        return (path / SERVER_MODEL).resolve()
    numbered = numbered_checkpoints(path)
    if not numbered:
        raise ConfigError(
            f"{path} is not a checkpoint, nor a folder of them: name runs/<run_name>/checkpoints "
            f"of a run, a file in it, or runs/<run_name>/server of a federation"
        )
    return numbered[-1][2]


def folder_of_checkpoint(file: Path) -> Path:
    """The folder of the run, with its ``config.yaml``, of a file of :func:`find_checkpoint`."""
    return file.parent if file.name == SERVER_MODEL else file.parent.parent


def hold(folder: str | Path, wait: float = 60.0) -> AcquireReturnProxy[FileLock]:
    """Lock a run, so that no other job writes to it, until the release or the end of this job.

    Args:
        folder: folder of the run; made if it does not exist.
        wait: seconds to wait for an earlier job, since one whose launcher was killed ends late.

    Returns:
        A context that releases the lock, as does its ``lock.release()``.

    Raises:
        ConfigError: another job still holds it.
    """
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(path).acquire(timeout=wait)
    except Timeout:
        raise ConfigError(
            f"{folder} is in use by process {path.read_text().strip() or 'unknown'}: wait for it "
            f"to end, or choose another run_name"
        ) from None
    path.write_text(f"{os.getpid()}\n")
    return held


def numbered_checkpoints(folder: str | Path) -> list[tuple[int, int, Path]]:
    """Round, batch and path of the checkpoints in a folder, in the order they were taken.

    Within a round, batch counts of different numbers of workers cannot be compared, so the order is
    that of the times of the files.
    """
    matches = [(CHECKPOINT.fullmatch(path.name), path) for path in Path(folder).glob("ep*.pt")]
    found = [(int(match[1]), int(match[2]), path) for match, path in matches if match]
    return sorted(found, key=lambda entry: (entry[0], entry[2].stat().st_mtime_ns, entry[1]))


def recover(save_folder: str | Path) -> list[Path]:
    """Repair a folder of checkpoints after a process was killed, for ``autoresume``.

    Finds the newest checkpoint whose file, and the files of its sources, pass their checksums, and
    points the link ``latest-rank0.pt``, from which Composer resumes, to it. Files that are cut
    short or altered are renamed to ``*.torn``, and so are checkpoints that need them.

    Args:
        save_folder: local folder of a run's checkpoints; may not exist.

    Returns:
        The new paths of the files that were renamed.
    """
    folder, aside = Path(save_folder), []
    durable.sweep(folder)
    files = SourceFiles(folder / FOLDER)
    newest = None
    for round_index, _, path in reversed(numbered_checkpoints(folder)):
        if durable.is_whole(path):
            torn, is_enough = files.torn(round_index)
            aside += [durable.set_aside(each) for each in torn]
            if is_enough:
                newest = path
                break
        aside.append(durable.set_aside(path))
    link = folder / "latest-rank0.pt"
    if newest is not None:
        if not link.is_symlink() or os.readlink(link) != newest.name:
            durable.link(link, newest.name)
    elif link.is_symlink():
        link.unlink()
    return aside


def refuse_other_settings(
    config: Mapping[str, Any], stored: Path, shaping: Sequence[str] = SHAPING
) -> None:
    """Refuse to resume a run that began with other settings.

    Args:
        config: the resolved config, as llm-foundry will have it.
        stored: ``config.yaml`` of the run; may not exist.
        shaping: the settings that must be equal.

    Raises:
        ConfigError: a setting that shapes the numbers differs.
    """
    if not stored.is_file():
        return
    before = OmegaConf.to_container(OmegaConf.load(stored))
    assert isinstance(before, dict)
    dept = at(config, "algorithms.dept")
    free = (*NOT_SHAPING, *(_OF_SOURCES if dept and dept.get("allow_source_changes") else ()))
    for section in shaping:
        difference = _first_difference(section, at(before, section), at(config, section), free)
        if difference is not None:
            key, old, new = difference
            joins = "algorithms.dept.allow_source_changes: true, so that sources join and leave"
            raise ConfigError(
                f"{stored.parent} holds a run with {key} = {old}, the yaml says {new}: set it "
                f"back, "
                + (f"set {joins}, " if dept and key in _OF_SOURCES else "")
                + "choose another run_name, or remove that folder"
            )


def at(config: Mapping[str, Any], section: str) -> Any:
    """The value of a dotted key of a yaml; ``None`` if it is absent."""
    for key in section.split("."):
        config = (config or {}).get(key)  # type: ignore[assignment]
    return config


def _first_difference(
    key: str, before: Any, now: Any, free: Sequence[str]
) -> tuple[str, Any, Any] | None:
    if key in free:
        return None
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted({*before, *now}):
            found = _first_difference(f"{key}.{name}", before.get(name), now.get(name), free)
            if found is not None:
                return found
        return None
    return None if before == now else (key, before, now)
