"""The move of a source to the worker that trains it next: its state moves through its file.

Sources move only with ``sampling: uniform``, several workers, and fewer sources per round than
there are (``RoundSchedule.moves``). All workers know the holder of each source from the schedule.
So a move needs a file of each source that another worker will train, and one message per round in
which all workers report that their files are written.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from typing import Any

from dept.config.dept_checks import SHARED_FOLDER, nowhere
from dept.errors import ConfigError, NotSaved
from dept.method.sampling import UNIFORM
from dept.training.run import Run


def check_folder(run: Run) -> None:
    """Refuse a run whose workers do not see one another's files, before any file is needed.

    Raises:
        ConfigError: there is no folder, or not all workers write to the same one.
        WorkerLost: a worker did not arrive.
    """
    workers = run.workers
    if run.held.files is None:
        raise nowhere(workers.count)
    folder = run.held.files.folder
    mark = folder / f".seen-{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # on failure no worker sees the file
        if workers.leads:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
    marks = workers.gather(mark.name, stage="the start")
    is_blind = workers.first_of_ranks(None if all((folder / m).is_file() for m in marks) else True)
    blind = workers.gather(bool(is_blind), stage="the start")
    with contextlib.suppress(OSError):
        if workers.leads:
            mark.unlink(missing_ok=True)
    if any(blind):
        raise ConfigError(
            f"algorithms.dept.sampling is {UNIFORM}, so workers pass on the states of sources in "
            f"{folder}, and worker {blind.index(True)} does not see there what all others write: "
            f"{SHARED_FOLDER}"
        )


def settle(run: Run, round_index: int) -> None:
    """Hold exactly the sources of this worker in a round, without communication, at the start.

    Args:
        run: the run of this worker, which is changed. State of sources of other workers is dropped.
        round_index: number of the round, from 0.
    """
    run.held.round_index = round_index
    run.held.sources = run.schedule.held_by(run.workers.place.worker, round_index)
    for source in run.schedule.sources:
        if source not in run.held.sources:
            run.forget(source)


def follow(run: Run, round_index: int) -> None:
    """At the start of a round: release sources that move away, and take those that move here.

    Workers synchronise only if some source moves. No slot may be running or suspended.

    Args:
        run: the run of this worker, which is changed.
        round_index: number of the round that starts, from 0.

    Raises:
        NotSaved: a file could not be written, on any worker, or could not be read.
        WorkerLost: a worker did not arrive.
    """
    here, moving = run.workers.place.worker, run.schedule.moving(run.held.round_index, round_index)
    if not moving:
        _part(run, round_index)
        run.held.round_index = round_index
        return
    leaving = [source for source, (holder, _) in moving.items() if holder == here]
    offer = _offer(run, leaving, round_index) if run.workers.leads else {}
    offers = run.workers.gather(offer, stage=f"the start of round {round_index + 1}")
    failed = [given["failed"] for given in offers if given["failed"] is not None]
    if failed:
        raise NotSaved(failed[0])
    settle(run, round_index)
    for source, (holder, new) in moving.items():
        if new == here:
            _take(run, source, offers[holder]["states"][source], holder)
    run.workers.wait_for_ranks()
    for source in (source for given in offers for source in given["only_to_move"]):
        if moving[source][1] == here:
            # No checkpoint needs the file, and the state of the source is about to change.
            if run.workers.leads:
                run.held.files.remove(source, (round_index, 0))
            del run.held.in_file[source]
            run.held.changed.add(source)


def _part(run: Run, round_index: int) -> None:
    """Write and drop the sources that have left after the round before."""
    held = run.schedule.held_by(run.workers.place.worker, round_index)
    for source in (source for source in run.held.sources if source not in held):
        if run.held.files is not None and source in run.held.changed and run.workers.leads:
            try:
                found = {"round": round_index, **run.state_of(source)}
                run.held.files.write(source, round_index, 0, found)
            except (OSError, RuntimeError) as error:  # torch raises its own for a failed write
                raise NotSaved(
                    f"{run.held.files.folder / source}, which leaves the run, could not be written "
                    f"({str(error).splitlines()[0]}): make room on that disk; the same command "
                    f"resumes from the last checkpoint"
                ) from error
        run.forget(source)
    run.held.sources = held


def _offer(run: Run, leaving: Sequence[str], round_index: int) -> dict[str, Any]:
    """Write each of these sources to a file, if needed; returns which file each one is in."""
    offer: dict[str, Any] = {"states": {}, "only_to_move": [], "failed": None}
    for source in leaving:
        if source in run.held.in_file and source not in run.held.changed:
            offer["states"][source] = run.held.in_file[source]
            continue
        at = (round_index, 0)
        if at not in run.held.files.states(source):
            offer["only_to_move"].append(source)
        try:
            run.held.files.write(source, *at, {"round": round_index, **run.state_of(source)})
        except (OSError, RuntimeError) as error:  # torch raises its own for a failed write
            offer["failed"] = (
                f"{run.held.files.folder / source} could not be written "
                f"({str(error).splitlines()[0]}), and another worker needs it to train {source}: "
                f"make room on that disk; the same command resumes from the last checkpoint"
            )
            break
        offer["states"][source] = at
    return offer


def _take(run: Run, source: str, state: tuple[int, int], holder: int) -> None:
    try:
        found = run.held.files.load(source, state)
    except ValueError as error:
        raise NotSaved(
            f"the file of {source} from worker {holder} cannot be read here as it was written: "
            f"check the disk of {run.held.files.folder}; the same command resumes from the "
            f"last checkpoint"
        ) from error
    run.take(source, found)
    run.held.in_file[source] = state
