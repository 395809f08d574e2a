"""Sources that join or leave a run, when it resumes with another ``train_loader.sources``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dept.checkpoint.source_files import FOLDER
from dept.errors import ConfigError
from dept.log import log
from dept.method.periods import Period
from dept.training.run import Run
from dept.training.vocabularies import vocabularies

CHANGEABLE = ("sources", "sources_per_round", "groups")
"""Settings of a checkpoint that may differ with ``algorithms.dept.allow_source_changes``."""


def refuse(run: Run, before: Mapping[str, Any]) -> None:
    """Refuse a change of sources that is not allowed, and sources of another tokenizer.

    Args:
        run: this run, with the sources of the yaml.
        before: the settings of the checkpoint (:func:`dept.training.resume.identity`).

    Raises:
        ValueError: the sources changed without the option, or a source is of another tokenizer.
    """
    schedule = run.schedule
    now = {"sources": list(schedule.sources), "sources_per_round": schedule.sources_per_round}
    for key, value in now.items():
        if before[key] != value and not run.options.allow_source_changes:
            raise ValueError(
                f"the checkpoint was made with {key} = {before[key]}, the yaml says {value}: set "
                f"it to the same, choose another run_name, or set "
                f"algorithms.dept.allow_source_changes to true, so that sources join and leave"
            )
    known = before["tokenizers"]
    # One tokenizer for all, of which a new source must be as well; or one for each.
    of_all = next(iter(known.values())) if run.options.sharing.vocabulary.is_global else None
    for source in schedule.sources:
        expected = known.get(source, of_all)
        if expected not in (None, run.loader.prepared[source].tokenizer_hash):
            raise ValueError(
                f"the shards of {source} are of another tokenizer than the checkpoint: prepare the "
                f"corpus with the tokenizer as it was, or choose another run_name"
            )


def adopt(run: Run, periods: list[dict[str, Any]], round_index: int, in_round: bool) -> None:
    """Continue the rounds of a checkpoint, with the sources of the yaml from the next round on.

    A round that has begun is finished with its own sources, of which those that leave must still be
    readable. So it does not matter at which batch of a round the run was resumed.

    Args:
        run: the run of this worker, which is changed.
        periods: the periods in the checkpoint.
        round_index: round of the checkpoint, from 0.
        in_round: whether that round has begun.

    Raises:
        ConfigError: the round has begun, and several workers would have to finish it.
        DataError: a source that leaves after that round cannot be read.
    """
    before = [Period.of(period) for period in periods]
    last, wanted = before[-1], run.schedule.periods[-1]
    is_changed = not last.draws_like(wanted)
    run.schedule = run.schedule.after(before, round_index + in_round if is_changed else last.first)
    since = run.schedule.since
    if since > round_index and run.workers.count > 1:
        raise ConfigError(
            f"train_loader.sources change after round {round_index + 1}, which has begun, and only "
            f"one worker can finish it: start one worker until that round ends, or remove the "
            f"checkpoints of the begun round"
        )
    for source in run.schedule.drawn(round_index):
        if source not in run.loader.prepared:
            prepared = run.loader.add(source)
            found = {source: prepared}
            run.slots.vocabularies |= vocabularies(found, run.options.sharing, run.tokenizer)
            run.positions[source] = 0
    run.loader.bind(run.schedule)
    if is_changed and run.workers.place.global_rank == 0:
        _say(run, last.sources, wanted.sources)


def _say(run: Run, before: tuple[str, ...], now: tuple[str, ...]) -> None:
    joined = [source for source in now if source not in before]
    left = [source for source in before if source not in now]
    said = f"joined: {', '.join(joined) or 'none'}; left: {', '.join(left) or 'none'}"
    if left and run.held.files is not None:
        folder = run.held.files.folder
        folders = ", ".join(str(folder / source) for source in left)
        said += f"; the files of sources that left stay in {folders}, and nothing reads them"
    elif left:
        said += f"; their files stay in {FOLDER} beside the checkpoint, and nothing reads them"
    log.info(f"from round {run.schedule.since + 1} on, the sources are {', '.join(now)} ({said})")
