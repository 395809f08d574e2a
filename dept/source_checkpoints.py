"""When files of sources are written: with every checkpoint, by the worker of the source."""

from __future__ import annotations

from pathlib import Path

from composer.core import Callback, Event, State, Time, TimeUnit
from composer.loggers import Logger
from composer.utils import create_interval_scheduler

from dept.algorithm import Dept
from dept.run_folder import CHECKPOINT
from dept.source_files import SourceFiles


class SourceCheckpoints(Callback):
    """Writes the sources of this worker, before the first one writes Composer's checkpoint.

    A checkpoint between rounds is made when every worker has written: all have just met at the
    outer step, so it costs nothing to meet again. In mid-round none waits for another. For that to
    be safe, a run that saves in mid-round writes its sources at the start of each round as well;
    then every checkpoint finds a state of each source in its own round.

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
        self._asked: tuple[tuple[Event, int], bool] | None = None
        self.dept: Dept

    def init(self, state: State, logger: Logger) -> None:
        self.dept = next(a for a in state.algorithms if isinstance(a, Dept))
        self.files = SourceFiles(str(self.files.folder).format(run_name=state.run_name))
        if self.checkpoints is not None:
            self.checkpoints = self.checkpoints.format(run_name=state.run_name)
        self.dept.files = self.files
        self.dept.is_saving = self._is_saving
        self.dept.keep_local_models = self.in_mid_round

    def after_load(self, state: State, logger: Logger) -> None:
        if self.dept.workers.leads:
            self.files.sweep(self._mine)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        saving = self._is_saving(state, Event.BATCH_CHECKPOINT)
        round_ends = state.timestamp.batch_in_epoch == len(self.dept.loader)
        if saving:
            self._write(self.dept.changed, state)
        elif self.in_mid_round and not round_ends:
            # A finished local model is in memory until the next slot begins, so this is its time.
            self._write(self.dept.local_models.keys() & self.dept.changed, state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        if not (self._is_saving(state, Event.EPOCH_CHECKPOINT) or self.in_mid_round):
            return
        round_index = state.timestamp.epoch.value
        self._write(self.dept.changed, state)
        stage = f"the checkpoint of round {round_index}"
        oldest = self.dept.workers.gather(self._oldest_checkpoint(round_index), stage=stage)[0]
        if self.keep >= 0 and self.dept.workers.leads:
            for source in self._mine:
                self.files.prune(source, oldest_round=oldest, steps_to_keep=self.keep + 1)

    @property
    def _mine(self) -> tuple[str, ...]:
        return self.dept.schedule.sources_of(self.dept.workers.place.worker)

    def _is_saving(self, state: State, event: Event) -> bool:
        # Composer's scheduler must not be asked twice: it remembers.
        now = (event, state.timestamp.batch.value)
        if self._asked is None or self._asked[0] != now:
            self._asked = (now, self._scheduler(state, event))
        return self._asked[1]

    def _write(self, sources: set[str], state: State) -> None:
        round_index = state.timestamp.epoch.value
        for source in sorted(sources):
            if self.dept.workers.leads:
                found = {"round": round_index, **self.dept.state_of(source)}
                step = len(found["slot"]["losses"]) if found["slot"] else 0
                self.files.write(source, round_index, step, found)
                if self.keep >= 0:
                    self.files.prune(source, oldest_round=-1, steps_to_keep=self.keep + 1)
            self.dept.local_models.pop(source, None)
        self.dept.changed -= set(sources)

    def _oldest_checkpoint(self, round_index: int) -> int:
        """The round of the oldest checkpoint that will be there when this one is."""
        names = [p.name for p in Path(self.checkpoints).glob("ep*.pt")] if self.checkpoints else []
        rounds = [int(match[1]) for match in map(CHECKPOINT.fullmatch, names) if match]
        return min([*rounds, round_index])
