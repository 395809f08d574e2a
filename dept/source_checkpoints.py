"""When files of sources are written: with every checkpoint, by the worker of the source."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from composer.core import Callback, Event, State, Time, TimeUnit
from composer.loggers import Logger
from composer.utils import create_interval_scheduler

from callbacks.checkpoints import Checkpoints
from callbacks.stop_on_sigterm import StopOnSigterm
from dept.algorithm import Dept
from dept.run_folder import CHECKPOINT, NotSaved
from dept.source_files import SourceFiles


class SourceCheckpoints(Callback):
    """Writes the sources of this worker, before the first one writes Composer's checkpoint.

    A checkpoint between rounds is made when every worker has written: all have just met at the
    outer step, so it costs nothing to meet again. In mid-round none waits for another. For that to
    be safe, a run that saves in mid-round writes its sources at the start of each round as well;
    then every checkpoint finds a state of each source in its own round. If a source cannot be
    written (a full disk), there is no checkpoint that would need it, and training goes on.

    Args:
        folder: of the files.
        save_interval: that of the checkpoints.
        save_num_checkpoints_to_keep: likewise; -1 keeps all.
        checkpoints: folder of Composer's checkpoints, to know which are still there; ``None`` if
            that is remote.
    """

    def __init__(
        self,
        folder: str,
        save_interval: str | int,
        save_num_checkpoints_to_keep: int = -1,
        checkpoints: str | None = None,
    ) -> None:
        self.files = SourceFiles(folder)
        self.checkpoints = checkpoints
        self.keep = save_num_checkpoints_to_keep
        self.in_mid_round = Time.from_input(save_interval, TimeUnit.EPOCH).unit != TimeUnit.EPOCH
        self._scheduler = create_interval_scheduler(save_interval)
        self._decided: tuple[tuple[Event, int], bool] | None = None
        self._round_is_written = True  # by all workers, at its start; nothing is lost before that
        self._stop: StopOnSigterm | None = None
        self.dept: Dept

    def init(self, state: State, logger: Logger) -> None:
        self.dept = next(a for a in state.algorithms if isinstance(a, Dept))
        self.files = SourceFiles(str(self.files.folder).format(run_name=state.run_name))
        if self.checkpoints is not None:
            self.checkpoints = self.checkpoints.format(run_name=state.run_name)
        self.dept.files = self.files
        self.dept.is_saving = self._is_saving
        self._stop = next((c for c in state.callbacks if isinstance(c, StopOnSigterm)), None)
        for callback in state.callbacks:
            if isinstance(callback, Checkpoints):
                callback.save_interval = self._is_saving  # one decision for all that is written
        # Not only for a run that saves in mid-round: SIGTERM may ask for that at any batch.
        self.dept.keep_local_models = True

    def after_load(self, state: State, logger: Logger) -> None:
        if self.dept.workers.leads:
            self.files.sweep(self._mine)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        saving = self._is_saving(state, Event.BATCH_CHECKPOINT)
        round_ends = state.timestamp.batch_in_epoch == len(self.dept.loader)
        if saving:
            written = torch.tensor([self._write(self.dept.changed, state)])
            self.dept.workers.share([written])
            if not written.item():
                self._give_up(state)
        elif self.in_mid_round and not round_ends:
            # A finished local model is in memory until the next slot begins, so this is its time.
            self._write(self.dept.local_models.keys() & self.dept.changed, state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        saving = self._is_saving(state, Event.EPOCH_CHECKPOINT)
        self._round_is_written = False
        if not (saving or self.in_mid_round):
            return
        round_index = state.timestamp.epoch.value
        written = self._write(self.dept.changed, state)
        stage = f"the checkpoint of round {round_index}"
        here = {"written": written, "oldest": self._oldest_checkpoint(round_index)}
        given = self.dept.workers.gather(here, stage=stage)
        self._round_is_written = all(of_worker["written"] for of_worker in given)
        if not self._round_is_written:
            self._give_up(state)
        elif self.keep >= 0 and self.dept.workers.leads:
            for source in self._mine:
                oldest = given[0]["oldest"]
                self.files.prune(source, oldest_round=oldest, steps_to_keep=self.keep + 1)

    @property
    def _mine(self) -> tuple[str, ...]:
        return self.dept.schedule.sources_of(self.dept.workers.place.worker)

    def _is_saving(self, state: State, event: Event) -> bool:
        # Composer's scheduler must not be asked twice: it remembers.
        now = (event, state.timestamp.batch.value)
        if self._decided is None or self._decided[0] != now:
            scheduled = self._scheduler(state, event)
            asked = self._stop is not None and self._stop.asked(state, event)
            in_round = event == Event.BATCH_CHECKPOINT and self.dept.workers.count > 1
            saving = (scheduled or asked) and (self._round_is_written or not in_round)
            self._decided = (now, saving)
        return self._decided[1]

    def _give_up(self, state: State) -> None:
        """Let there be no checkpoint now, since a file that it needs could not be written."""
        elapsed = state.get_elapsed_duration()
        if elapsed is not None and elapsed >= 1.0:
            raise NotSaved(
                f"the end of the run could not be written to {self.files.folder}: make room on "
                f"that disk; the same command goes on from the last checkpoint"
            )
        assert self._decided is not None
        self._decided = (self._decided[0], False)

    def _write(self, sources: set[str], state: State) -> bool:
        """Write files of sources; whether the disk took them."""
        round_index = state.timestamp.epoch.value
        for source in sorted(sources):
            if self.dept.workers.leads:
                found = {"round": round_index, **self.dept.state_of(source)}
                step = len(found["slot"]["losses"]) if found["slot"] else 0
                try:
                    self.files.write(source, round_index, step, found)
                except (OSError, RuntimeError) as error:  # torch has its own for a failed write
                    print(
                        f"{self.files.folder / source} could not be written "
                        f"({str(error).splitlines()[0]}), so there is no checkpoint now and the "
                        f"one before it is kept; make room on that disk: training goes on",
                        file=sys.stderr,
                        flush=True,
                    )
                    return False
                if self.keep >= 0:
                    self.files.prune(source, oldest_round=-1, steps_to_keep=self.keep + 1)
            self.dept.local_models.pop(source, None)
            self.dept.changed.discard(source)
        return True

    def _oldest_checkpoint(self, round_index: int) -> int:
        """The round of the oldest checkpoint that will be there when this one is."""
        names = [p.name for p in Path(self.checkpoints).glob("ep*.pt")] if self.checkpoints else []
        rounds = [int(match[1]) for match in map(CHECKPOINT.fullmatch, names) if match]
        return min([*rounds, round_index])
