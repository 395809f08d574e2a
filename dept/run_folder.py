"""What an earlier process left of a run: torn checkpoints, other settings, or a finished run."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dept.options import ConfigError

# What shapes the numbers of a run. A resumed run must not change it.
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
)

# Where data comes from, how much of it is kept, and how long to wait, are a machine's affair; what
# is evaluated changes nothing that is trained.
_NOT_SHAPING = (
    "train_loader.remote",
    "train_loader.cache_limit",
    "algorithms.dept.worker_timeout",
    "algorithms.dept.icl_source",
)

# Several workers count other batches than one, and write -w<workers> in the names.
CHECKPOINT = re.compile(r"ep(\d+)-ba(\d+)(?:-w\d+)?-rank\d+\.pt")


def checkpoint_name(workers: int) -> str:
    """``save_filename`` of a job: names of one number of workers never meet those of another."""
    return "ep{epoch}-ba{batch}" + (f"-w{workers}" if workers > 1 else "") + "-rank{rank}.pt"


def folder_of(config: Mapping[str, Any]) -> Path:
    """Where the callback ``run_files`` writes ``config.yaml`` and ``summary.json`` of a run."""
    options = (config.get("callbacks") or {}).get("run_files") or {}
    return Path(options.get("folder", "runs/{run_name}").format(run_name=config.get("run_name")))


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint: the file itself, or the newest one of a folder of checkpoints.

    Raises:
        ConfigError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path.resolve()  # a link to it is not beside the files of its sources
    matches = [(CHECKPOINT.fullmatch(file.name), file) for file in path.glob("ep*.pt")]
    numbered = [(int(m[1]), int(m[2]), file) for m, file in matches if m]
    if not numbered:
        raise ConfigError(
            f"{path} is not a checkpoint, nor a folder of them: name runs/<run_name>/checkpoints "
            f"of a run, or a file in it"
        )
    return max(numbered)[2]


def recover(save_folder: str | Path) -> list[Path]:
    """Make a folder of checkpoints whole after a process was killed in it, for ``autoresume``.

    Composer writes a checkpoint under its final name and then moves the link
    ``latest-rank0.pt``, removing it first. A kill in between leaves a torn file, or no link, or
    one that is behind. Torn files are set aside as ``*.torn``; the link is pointed at the newest
    checkpoint that is whole.

    Args:
        save_folder: local folder of a run's checkpoints; may not exist.

    Returns:
        The files that were set aside, under their new names.
    """
    folder, whole, torn = Path(save_folder), {}, []
    for path in sorted(folder.glob("ep*-ba*-rank0.pt")):
        match = CHECKPOINT.fullmatch(path.name)
        if match is None:
            continue
        if zipfile.is_zipfile(path):  # the directory of a zip file is at its end
            # Within a round, batches of different numbers of workers cannot be compared.
            whole[int(match[1]), path.stat().st_mtime_ns, int(match[2])] = path
        else:
            torn.append(path.rename(path.with_name(path.name + ".torn")))
    link = folder / "latest-rank0.pt"
    if whole:
        newest = whole[max(whole)]
        if not link.is_symlink() or os.readlink(link) != newest.name:
            temporary = folder / f".latest.{os.getpid()}"
            temporary.symlink_to(newest.name)
            temporary.replace(link)
    elif link.is_symlink():
        link.unlink()
    return torn


def refuse_other_settings(config: Mapping[str, Any], stored: Path) -> None:
    """Refuse to go on with a run whose settings were others.

    Args:
        config: the resolved config, as llm-foundry will have it.
        stored: ``config.yaml`` of the run; may not exist.

    Raises:
        ConfigError: a setting that shapes the numbers differs.
    """
    if not stored.is_file():
        return
    before = OmegaConf.to_container(OmegaConf.load(stored))
    assert isinstance(before, dict)
    for section in SHAPING:
        difference = _first_difference(section, _at(before, section), _at(config, section))
        if difference is not None:
            key, old, new = difference
            raise ConfigError(
                f"{stored.parent} holds a run with {key} = {old}, the yaml says {new}: set it "
                f"back, choose another run_name, or remove that folder"
            )


def _at(config: Mapping[str, Any], section: str) -> Any:
    for key in section.split("."):
        config = (config or {}).get(key)  # type: ignore[assignment]
    return config


def _first_difference(key: str, before: Any, now: Any) -> tuple[str, Any, Any] | None:
    if key in _NOT_SHAPING:
        return None
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted({*before, *now}):
            found = _first_difference(f"{key}.{name}", before.get(name), now.get(name))
            if found is not None:
                return found
        return None
    return None if before == now else (key, before, now)
