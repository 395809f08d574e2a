"""The state that an earlier job of the same run left, here and at its remote address."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from dept.checkpoint import remote_checkpoints, run_folder, trust
from dept.checkpoint.remote_folder import RemoteFolder
from dept.config import complete as configs
from dept.log import log
from dept.training.summary import read_summary


def look_into(folder: Path, config: dict[str, Any], is_first: bool) -> dict[str, Any] | None:
    """Repair the checkpoints of an earlier job, and refuse a run that this job cannot resume.

    Args:
        folder: folder of the run.
        config: the resolved yaml, as plain containers.
        is_first: whether this process changes files for all processes.

    Returns:
        The summary, if the run is finished.

    Raises:
        ConfigError: the settings of the run were others, or a checkpoint cannot be used.
    """
    checkpoints, address = run_folder.checkpoints_of(config), run_folder.remote_of(config)
    remote = RemoteFolder(checkpoints, address) if address and is_first else None
    if remote is not None:
        remote.check()
    if not config.get("autoresume"):
        return None
    run_folder.refuse_other_settings(configs.complete(deepcopy(config)), folder / "config.yaml")
    for path in run_folder.recover(checkpoints) if is_first else ():
        log.warning(f"{path} was cut short by a kill and is not used")
    if remote is not None:
        dept, _ = configs.options_of(config)
        for said in remote_checkpoints.bring(remote, with_sources=dept and dept.upload_sources):
            log.info(said)
    newest = checkpoints / "latest-rank0.pt"
    if newest.is_file():
        trust.refuse_code(newest.resolve())
    summary = read_summary(folder / "summary.json")
    return summary if summary and f"{summary['rounds']}ep" == str(config["max_duration"]) else None
