"""Composer's checkpoint saver, extended so that a complete checkpoint exists at any time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from composer.callbacks import CheckpointSaver
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import checkpoint, create_symlink_file, dist, format_name_with_dist

from dept.checkpoint import durable
from dept.checkpoint.epoch_end import after_the_epoch
from dept.checkpoint.remote_checkpoints import checkpoints_among
from dept.checkpoint.remote_folder import RemoteFolder
from dept.checkpoint.run_folder import numbered_checkpoints
from dept.checkpoint.sigterm import StopOnSigterm
from dept.errors import NotSaved
from dept.log import log


class Checkpoints(CheckpointSaver):
    """Composer's checkpoint saver, robust against full disks and killed processes.

    * A checkpoint gets its name when all of it is on disk.
    * If one cannot be written (a full disk), it is skipped with a warning, and training continues
      to the next one. The last one of a run must be written, or the run fails.
    * After SIGTERM a checkpoint is taken before the run ends.
    * ``num_checkpoints_to_keep`` also counts checkpoints from before the run was resumed.
    * A thread uploads a checkpoint to a remote folder, while training continues until the next one
      is due. A failed upload is logged, and tried again with the next one. The last one of a run
      must be uploaded, or the run fails.

    Args:
        folder: local folder to write to.
        filename: name of checkpoints, by default that of llm-foundry.
        latest_filename: name of the link to the newest.
        remote: address that checkpoints are sent to: a ``save_folder`` such as ``s3://...``.
        options: other options of Composer's ``CheckpointSaver``.

    Attributes:
        needs: names of files that must be at the remote address before a checkpoint is sent.
    """

    def __init__(
        self,
        folder: str,
        filename: str = "ep{epoch}-ba{batch}-rank{rank}.pt",
        latest_filename: str = "latest-rank{rank}.pt",
        remote: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            folder=folder,
            filename=filename,
            remote_file_name=str(Path(folder) / filename),
            latest_filename=latest_filename,
            latest_remote_file_name=str(Path(folder) / latest_filename),
            **options,
        )
        self.needs: list[str] = []
        self.remote: RemoteFolder | None = None
        if remote is not None and dist.get_global_rank() == 0:
            self.remote = RemoteFolder(folder, remote)
            if self.num_checkpoints_to_keep == 0:
                self.num_checkpoints_to_keep = 1  # it must stay on this disk until it is sent
        self._scheduled = after_the_epoch(
            self.save_interval, Event.BATCH_CHECKPOINT, Event.EPOCH_CHECKPOINT
        )
        self.save_interval = self._is_due

    def fit_start(self, state: State, logger: Logger) -> None:
        super().fit_start(state, logger)
        self._stop = next((c for c in state.callbacks if isinstance(c, StopOnSigterm)), None)
        if dist.get_global_rank() == 0:
            folder = Path(format_name_with_dist(self.folder, state.run_name))
            now = state.timestamp
            self.saved_checkpoints = [
                str(path)
                for epoch, batch, path in numbered_checkpoints(folder)
                if epoch <= now.epoch.value and batch <= now.batch.value
            ]
            self._send_newest()  # an earlier process may have ended before it sent the file
            self._sent_at_the_end(state)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        super().batch_checkpoint(state, logger)
        self._end_if_asked(state, Event.BATCH_CHECKPOINT)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        super().epoch_checkpoint(state, logger)
        self._end_if_asked(state, Event.EPOCH_CHECKPOINT)

    def _end_if_asked(self, state: State, event: Event) -> None:
        if self._stop is not None:
            if self._stop.asked(state, event) and self.remote is not None:
                self.remote.wait()
            self._stop.end_if_asked(state, event)

    def _is_due(self, state: State, event: Event) -> bool:
        scheduled = self._scheduled(state, event)
        return scheduled or (self._stop is not None and self._stop.asked(state, event))

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        if self.remote is not None:
            self.remote.wait_for(checkpoints_among(p.name for p in self.remote.folder.glob("*")))
        try:
            if state.fsdp_sharded_state_dict_enabled:
                super()._save_checkpoint(state, logger)
            else:
                self._save_whole(state, logger)
        except NotSaved as error:
            if _is_the_end(state):
                raise
            log.warning(f"{error}: training continues")
            return
        self._forget_old()
        self._send_newest()
        self._sent_at_the_end(state)

    def _save_whole(self, state: State, logger: Logger) -> None:
        """Save as Composer does for a checkpoint in one file, which gets its name last."""
        self.last_checkpoint_batch = state.timestamp.batch
        path = self.filename.format(state)
        self.all_saved_checkpoints_to_timestamp[path] = state.timestamp  # the file itself lists it
        _write(state, path, weights_only=self.weights_only, ignore_keys=self.ignore_keys)
        if dist.get_global_rank() > 0:
            return
        if self.num_checkpoints_to_keep != 0:
            link = self.latest_filename.format(state)
            durable.link(link, os.path.relpath(path, os.path.dirname(link)))
        self._offer(path, state, logger)
        self.saved_checkpoints.append(path)
        if self.num_checkpoints_to_keep >= 0:
            self._rotate_checkpoints()

    def _offer(self, path: str, state: State, logger: Logger) -> None:
        """Pass the checkpoint, and a link to it, to loggers that upload files."""
        name = self.remote_file_name.format(state).lstrip("/")
        logger.upload_file(remote_file_name=name, file_path=path, overwrite=self.overwrite)
        link = Path(self.tmp_dir_for_symlink.name, "latest.symlink")
        create_symlink_file(name, link)
        latest = self.latest_remote_file_name.format(state).lstrip("/")
        logger.upload_file(remote_file_name=f"{latest}.symlink", file_path=link, overwrite=True)
        link.unlink()

    def _sent_at_the_end(self, state: State) -> None:
        if self.remote is not None and _is_the_end(state) and not self.remote.wait():
            raise NotSaved(f"{self.remote.unsent}; the same command resumes from there")

    def _forget_old(self) -> None:
        """Drop the names of removed checkpoints, which Composer lists in every checkpoint."""
        for name in [*self.all_saved_checkpoints_to_timestamp][
            : -max(len(self.saved_checkpoints), 1)
        ]:
            del self.all_saved_checkpoints_to_timestamp[name]

    def _send_newest(self) -> None:
        """Queue the newest checkpoint for upload if it is missing, and older ones for removal."""
        if self.remote is None or not self.saved_checkpoints:
            return
        there = checkpoints_among(self.remote.names)
        name = Path(self.saved_checkpoints[-1]).name
        if name in there:
            return
        self.remote.send(name, self.needs)
        self.remote.link(self.latest_filename.filename.format(rank=0), name)
        if self.num_checkpoints_to_keep > 0:
            self.remote.remove(there[: max(len(there) + 1 - self.num_checkpoints_to_keep, 0)])


def _is_the_end(state: State) -> bool:
    elapsed = state.get_elapsed_duration()
    return elapsed is not None and elapsed >= 1.0


def save_whole(state: State, filename: str, **options: Any) -> bool:
    """Call Composer's ``save_checkpoint``; on failure the file is unchanged.

    Args:
        state: the state of Composer's trainer.
        filename: path of the checkpoint on a local disk.
        options: other arguments of Composer's ``save_checkpoint``, such as ``weights_only``.

    Returns:
        Whether it was written; the same on all ranks.
    """
    saved = True
    try:
        _write(state, filename, **options)
    except NotSaved as error:
        log.warning(f"{error}: training continues")
        saved = False
    return all(dist.all_gather_object(saved))


def _write(state: State, filename: str, **options: Any) -> None:
    """Let Composer write under a temporary name.

    Raises:
        NotSaved: on the first rank, if the disk did not take it; other ranks pass the same barrier.
    """
    if dist.get_global_rank() > 0 or state.fsdp_sharded_state_dict_enabled:
        checkpoint.save_checkpoint(state, filename, **options)
        return
    is_past = False
    try:
        with durable.replacing(filename) as temporary:
            checkpoint.save_checkpoint(state, str(temporary), **options)
            is_past = True
    except (OSError, RuntimeError) as error:
        if not _is_of_the_disk(error):
            raise
        if not is_past:
            dist.barrier()  # the other ranks wait here for the file
        reason = str(error).splitlines()[0]
        raise NotSaved(
            f"{filename} could not be written ({reason}), the checkpoint before it is kept; "
            f"make room on that disk"
        ) from error


def _is_of_the_disk(error: Exception) -> bool:
    """Whether the error is a failed write; torch raises its own from its archive writer."""
    return isinstance(error, OSError) or "inline_container" in str(error)
