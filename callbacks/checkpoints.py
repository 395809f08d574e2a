"""Composer's checkpoints, so that there always is a whole one, whatever happens meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from composer.callbacks import CheckpointSaver
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import checkpoint, dist, format_name_with_dist, parse_uri

from callbacks.stop_on_sigterm import StopOnSigterm
from dept import durable
from dept.run_folder import NotSaved, numbered_checkpoints


class Checkpoints(CheckpointSaver):
    """Composer's saver of checkpoints, for disks that fill up and processes that die.

    * A checkpoint gets its name when all of it is on disk.
    * One that cannot be written (a full disk) is given up with a warning, and training goes on
      to the next; but the last one of a run must be written, or the run fails.
    * After SIGTERM one is taken before the end.
    * ``num_checkpoints_to_keep`` counts those from before the run was resumed, too.

    Args:
        folder: where to write, as ``save_folder`` of the yaml: local, or an address.
        filename: of checkpoints, as llm-foundry names them by default.
        latest_filename: of the link to the newest.
        options: other ones of Composer's ``CheckpointSaver``.
    """

    def __init__(
        self,
        folder: str,
        filename: str = "ep{epoch}-ba{batch}-rank{rank}.pt",
        latest_filename: str = "latest-rank{rank}.pt",
        **options: Any,
    ) -> None:
        _, _, inside = parse_uri(folder)
        super().__init__(
            folder=folder,
            filename=filename,
            remote_file_name=str(Path(inside) / filename),
            latest_filename=latest_filename,
            latest_remote_file_name=str(Path(inside) / latest_filename),
            **options,
        )
        self._scheduled = self.save_interval
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

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        super().batch_checkpoint(state, logger)
        if self._stop is not None:
            self._stop.end_if_asked(state, Event.BATCH_CHECKPOINT)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        super().epoch_checkpoint(state, logger)
        if self._stop is not None:
            self._stop.end_if_asked(state, Event.EPOCH_CHECKPOINT)

    def _is_due(self, state: State, event: Event) -> bool:
        scheduled = self._scheduled(state, event)
        return scheduled or (self._stop is not None and self._stop.asked(state, event))

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        try:
            with _written_whole():
                super()._save_checkpoint(state, logger)
        except NotSaved as error:
            elapsed = state.get_elapsed_duration()
            if elapsed is not None and elapsed >= 1.0:
                raise
            print(f"{error}: training goes on", file=sys.stderr, flush=True)
            dist.barrier()  # where the other ranks wait for the file
            if self.remote_file_name is not None and self.remote_uploader is not None:
                dist.all_gather_object([])  # where they wait for its name


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
        print(f"{error}: training goes on", file=sys.stderr, flush=True)
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
