"""Write the file of each source with every checkpoint, on the worker of the source."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from composer.core import Callback, Event, State, Time, TimeUnit
from composer.loggers import Logger
from composer.utils import create_interval_scheduler

from dept.checkpoint.epoch_end import after_the_epoch, ends_epoch
from dept.checkpoint.remote_checkpoints import bring_states, checkpoints_among, states_at
from dept.checkpoint.remote_folder import RemoteFolder
from dept.checkpoint.run_folder import progress
from dept.checkpoint.saver import Checkpoints
from dept.checkpoint.sigterm import StopOnSigterm
from dept.checkpoint.source_files import FOLDER, SourceFiles, name_of, outdated, read_by
from dept.errors import NotSaved
from dept.log import log
from dept.training.algorithm import Dept


class SourceCheckpoints(Callback):
    """Writes the sources of this worker, before the first worker writes Composer's checkpoint.

    A checkpoint between rounds is made when every worker has written its files: workers have just
    synchronised at the outer step, so synchronising again costs nothing. In mid-round no worker
    waits for another. To make that safe, a run that saves in mid-round also writes its sources at
    the start of each round, so that every checkpoint finds a state of each source from its own
    round. If a source cannot be written (a full disk), no checkpoint that needs it is made, and
    training continues.

    A thread sends the files to a remote folder; the upload of the checkpoint waits for all of them.
    At the next checkpoint the worker waits until they are sent.

    Args:
        checkpoints: folder of Composer's checkpoints; the files are in ``sources`` below it.
        save_interval: interval of the checkpoints.
        save_num_checkpoints_to_keep: number of checkpoints to keep; -1 keeps all.
        remote: address that the files are sent to, if any.
    """

    def __init__(
        self,
        checkpoints: str,
        save_interval: str | int,
        save_num_checkpoints_to_keep: int = -1,
        remote: str | None = None,
    ) -> None:
        self.checkpoints = Path(checkpoints)
        self.address = remote
        self.remote: RemoteFolder | None = None
        self.keep = save_num_checkpoints_to_keep
        self.in_mid_round = Time.from_input(save_interval, TimeUnit.EPOCH).unit != TimeUnit.EPOCH
        self._scheduler = after_the_epoch(
            create_interval_scheduler(save_interval),
            Event.BATCH_CHECKPOINT,
            Event.EPOCH_CHECKPOINT,
        )
        self._decided: tuple[tuple[Event, int], bool] | None = None
        self._round_is_written = True  # whether all workers wrote their files at its start
        self._stop: StopOnSigterm | None = None
        self.dept: Dept

    def init(self, state: State, logger: Logger) -> None:
        self.dept = next(a for a in state.algorithms if isinstance(a, Dept))
        self.checkpoints = Path(str(self.checkpoints).format(run_name=state.run_name))
        self.files = SourceFiles(self.checkpoints / FOLDER)
        self._held = self.dept.held
        self._held.files = self.files
        self._stop = next((c for c in state.callbacks if isinstance(c, StopOnSigterm)), None)
        self._saver = next((c for c in state.callbacks if isinstance(c, Checkpoints)), None)
        if self._saver is not None:
            self._saver.save_interval = self._is_saving  # one decision for all files
        if self.address is not None and self.dept.workers.leads:
            self.remote = self._saver and self._saver.remote  # one queue for all uploads
            self.remote = self.remote or RemoteFolder(self.checkpoints, self.address)
            self._held.fetch = partial(bring_states, self.remote)
        # This is also for a run that does not save in mid-round: SIGTERM may come at any batch.
        self._held.keeps_local_models = True

    def after_load(self, state: State, logger: Logger) -> None:
        if self.dept.workers.leads:
            self.files.sweep(self._mine)
        if self.remote is not None:
            for source in self._mine:  # an earlier process may have ended before it sent them
                kept = read_by(self.files.states(source), state.timestamp.epoch.value)
                self._send(source, [s for s in kept if s not in states_at(self.remote, source)])
        if self.address is not None:
            self._wait_for_others(self.dept.workers.gather(self._newest(), stage="the start"))

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        saving = self._is_saving(state, Event.BATCH_CHECKPOINT)
        if saving:
            self.dept.park(state)  # the checkpoint has the global model, and files have the slot
            self._wait_until_sent()
            written = torch.tensor([self._write(self._held.changed, state)])
            self.dept.workers.share([written])
            if not written.item():
                self._give_up(state)
        elif self.in_mid_round and not ends_epoch(state):
            # A finished local model is only in memory until the next slot begins.
            self._write(self.dept.run.local_models.keys() & self._held.changed, state)
        if self._stop is not None and self._stop.asked(state, Event.BATCH_CHECKPOINT):
            self._wait_until_sent()

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        saving = self._is_saving(state, Event.EPOCH_CHECKPOINT)
        self._round_is_written = False
        if not (saving or self.in_mid_round):
            return
        self._wait_until_sent()
        if self.remote is not None and self.dept.run.schedule.moves:
            self.remote.list_again()  # sources may move here from workers that sent their files
        round_index = state.timestamp.epoch.value
        written = self._write(self._held.changed, state)
        here = {
            "written": written,
            "oldest": self._oldest_checkpoint(round_index),
            "newest": self._newest(),
        }
        given = self.dept.workers.gather(here, stage=f"the checkpoint of round {round_index}")
        self._round_is_written = all(of_worker["written"] for of_worker in given)
        if not self._round_is_written:
            self._give_up(state)
            return
        self._wait_for_others([of_worker["newest"] for of_worker in given])
        if self.keep >= 0 and self.dept.workers.leads:
            self._prune(oldest=given[0]["oldest"])
        if self._stop is not None and self._stop.asked(state, Event.EPOCH_CHECKPOINT):
            self._wait_until_sent()

    def fit_end(self, state: State, logger: Logger) -> None:
        # The first worker has waited for all files when its own last checkpoint was written.
        if self.remote is not None and self._saver is None and not self.remote.wait():
            raise NotSaved(f"{self.remote.unsent}; the same command resumes from there")

    @property
    def _mine(self) -> tuple[str, ...]:
        return self._held.sources

    def _is_saving(self, state: State, event: Event) -> bool:
        # Composer's scheduler must be called only once, since it has state.
        now = (event, state.timestamp.batch.value)
        if self._decided is None or self._decided[0] != now:
            scheduled = self._scheduler(state, event)
            asked = self._stop is not None and self._stop.asked(state, event)
            in_round = event == Event.BATCH_CHECKPOINT and self.dept.workers.count > 1
            saving = (scheduled or asked) and (self._round_is_written or not in_round)
            self._decided = (now, saving)
        return self._decided[1]

    def _give_up(self, state: State) -> None:
        """Skip this checkpoint, since a file that it needs could not be written."""
        if _is_the_end(state):
            raise NotSaved(
                f"the end of the run could not be written to {self.files.folder}: make room on "
                f"that disk; the same command resumes from the last checkpoint"
            )
        assert self._decided is not None
        self._decided = (self._decided[0], False)

    def _write(self, sources: set[str], state: State) -> bool:
        """Write files of sources; returns whether all were written."""
        round_index = state.timestamp.epoch.value
        for source in sorted(sources):
            if self.dept.workers.leads:
                found = {"round": round_index, **self.dept.run.state_of(source)}
                step = len(found["slot"]["losses"]) if found["slot"] else 0
                try:
                    self.files.write(source, round_index, step, found)
                except (OSError, RuntimeError) as error:  # torch raises its own for a failed write
                    log.warning(
                        f"{self.files.folder / source} could not be written "
                        f"({str(error).splitlines()[0]}), so there is no checkpoint now and the "
                        f"one before it is kept; make room on that disk: training continues"
                    )
                    return False
                self._held.in_file[source] = (round_index, step)
                self._send(source, [(round_index, step)])
                if self.keep >= 0:
                    self._prune(source, oldest=-1)
            self.dept.run.local_models.pop(source, None)
            self._held.changed.discard(source)
        return True

    def _prune(self, *sources: str, oldest: int) -> None:
        """Remove files of these sources (default: all) that no checkpoint from ``oldest`` needs."""
        for source in sources or self._mine:
            keep = self.keep + 1
            self.files.prune(source, oldest_round=oldest, steps_to_keep=keep)
            if self.remote is not None:
                gone = outdated(states_at(self.remote, source), oldest, keep)
                self.remote.remove(f"{FOLDER}/{name_of(source, state)}" for state in gone)

    def _oldest_checkpoint(self, round_index: int) -> int:
        """The round of the oldest checkpoint that is kept after this one is written."""
        names = [path.name for path in self.checkpoints.glob("ep*.pt")]
        names += self.remote.names if self.remote is not None else ()
        return min([*(progress(name)[0] for name in checkpoints_among(names)), round_index])

    # --- a remote folder --------------------------------------------------------------------------

    def _send(self, source: str, states: list[tuple[int, int]]) -> None:
        for state in states if self.remote is not None else ():
            self.remote.send(f"{FOLDER}/{name_of(source, state)}")

    def _newest(self) -> list[str]:
        """Names of the newest files of this worker's sources."""
        newest = {source: self.files.states(source)[-1:] for source in self._mine}
        return [f"{FOLDER}/{name_of(source, s)}" for source, found in newest.items() for s in found]

    def _wait_for_others(self, newest: list[list[str]]) -> None:
        """Make the upload of checkpoints wait for the files of other workers."""
        if self._saver is not None and self.remote is not None:
            others = [
                n for worker, n in enumerate(newest) if worker != self.dept.workers.place.worker
            ]
            self._saver.needs = [name for names in others for name in names]

    def _wait_until_sent(self) -> None:
        if self.remote is not None:
            self.remote.wait()


def _is_the_end(state: State) -> bool:
    elapsed = state.get_elapsed_duration()
    return elapsed is not None and elapsed >= 1.0
