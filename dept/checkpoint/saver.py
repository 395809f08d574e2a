"""Composer's checkpoints, so that there always is a whole one, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from composer.callbacks import CheckpointSaver
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import checkpoint, dist, format_name_with_dist

from dept.checkpoint import durable
from dept.checkpoint.epoch_end import after_the_epoch
from dept.checkpoint.notices import tell
from dept.checkpoint.remote_checkpoints import checkpoints_among
from dept.checkpoint.remote_folder import RemoteFolder
from dept.checkpoint.run_folder import numbered_checkpoints
from dept.checkpoint.sigterm import StopOnSigterm
from dept.errors import NotSaved


class Checkpoints(CheckpointSaver):
    """Composer's saver of checkpoints, for disks that fill up and processes that die.

    * A checkpoint gets its name when all of it is on disk.
    * One that cannot be written (a full disk) is given up with a warning, and training goes on
      to the next; but the last one of a run must be written, or the run fails.
    * After SIGTERM one is taken before the end.
    * ``num_checkpoints_to_keep`` counts those from before the run was resumed, too.
    * To a remote folder it is sent in a thread, while training goes on until the next one is due.
      What cannot be sent is said, and tried again then; but the last one of a run must be.

    Args:
        folder: where to write, on this machine.
        filename: of checkpoints, as llm-foundry names them by default.
        latest_filename: of the link to the newest.
        remote: address that checkpoints are sent to: a ``save_folder`` such as ``s3://...``.
        options: other ones of Composer's ``CheckpointSaver``.

    Attributes:
        needs: names of files that must be at the remote address before a checkpoint is.
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
                self.num_checkpoints_to_keep = 1  # it must be here until it is sent
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
            self._send_newest()  # an earlier process may have ended before it had
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
            with _written_whole():
                super()._save_checkpoint(state, logger)
        except NotSaved as error:
            if _is_the_end(state):
                raise
            tell(f"{error}: training goes on")
            dist.barrier()  # where the other ranks wait for the file
            return
        self._forget_old()
        self._send_newest()
        self._sent_at_the_end(state)

    def _sent_at_the_end(self, state: State) -> None:
        if self.remote is not None and _is_the_end(state) and not self.remote.wait():
            raise NotSaved(f"{self.remote.unsent}; the same command goes on from there")

    def _forget_old(self) -> None:
        """Drop what Composer keeps of every checkpoint that ever was: a file, and a name in all."""
        for path in Path(self.tmp_dir_for_symlink.name).iterdir():
            path.unlink()
        for name in [*self.all_saved_checkpoints_to_timestamp][
            : -max(len(self.saved_checkpoints), 1)
        ]:
            del self.all_saved_checkpoints_to_timestamp[name]

    def _send_newest(self) -> None:
        """Let the newest checkpoint be sent if it is not there, and older ones be removed."""
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
    """Composer's ``save_checkpoint``, to a file that is whole or as it was before.

    Returns:
        Whether the disk took it; the same on all ranks.
    """
    saved = True
    try:
        with _written_whole():
            checkpoint.save_checkpoint(state, filename, **options)
    except NotSaved as error:
        tell(f"{error}: training goes on")
        dist.barrier()  # where the other ranks wait for the file
        saved = False
    return all(dist.all_gather_object(saved))


@contextmanager
def _written_whole() -> Iterator[None]:
    """Let Composer write through a temporary file; it has no hook for that."""
    write = checkpoint._write_checkpoint_file

    def write_whole(state_dict: dict[str, Any], filename: str) -> None:
        try:
            with durable.replacing(filename) as temporary:
                write(state_dict, str(temporary))
        except (OSError, RuntimeError) as error:  # torch has its own for a failed write
            reason = str(error).splitlines()[0]
            raise NotSaved(
                f"{filename} could not be written ({reason}), the checkpoint before it is kept; "
                f"make room on that disk"
            ) from error

    checkpoint._write_checkpoint_file = write_whole
    try:
        yield
    finally:
        checkpoint._write_checkpoint_file = write
