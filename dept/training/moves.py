"""How a source follows its draws from worker to worker: its state moves through its file.

Only with ``sampling: uniform``, several workers, and fewer sources a round than there are
(``RoundSchedule.moves``). Who holds what in a round is known to all workers
from the schedule, so what travels is a file of each source that another worker is to train, and
one message a round in which all say that theirs are written.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from typing import Any

from dept.config.check import SHARED_FOLDER, nowhere
from dept.errors import ConfigError, NotSaved
from dept.method.sampling import UNIFORM
from dept.training.run import Run


def check_folder(run: Run) -> None:
    """Refuse a run whose workers do not see one another's files; before any is needed.

    Raises:
        ConfigError: there is no folder, or not all of them write to the same one.
        WorkerLost: a worker did not arrive.
    """
    workers = run.workers
    if run.held.files is None:
        raise nowhere(workers.count)
    folder = run.held.files.folder
    mark = folder / f".seen-{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # then nobody sees it
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
    """Hold what is this worker's in a round, and nothing else; at the start, without exchange."""
    run.held.round_index = round_index
    run.held.sources = run.schedule.held_by(run.workers.place.worker, round_index)
    for source in run.schedule.sources:
        if source not in run.held.sources:
            run.forget(source)


def follow(run: Run, round_index: int) -> None:
    """At the start of a round: give away the sources that others hold in it, and take one's own.

    Workers synchronise only if some source moves. No slot may be running or suspended.

    Raises:
        NotSaved: a file could not be written, on any worker, or not be read.
        WorkerLost: a worker did not arrive.
    """
    here, moving = run.workers.place.worker, run.schedule.moving(run.held.round_index, round_index)
    if not moving:
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
            # No checkpoint needs it, and what it holds is about to change.
            if run.workers.leads:
                run.held.files.remove(source, (round_index, 0))
            del run.held.in_file[source]
            run.held.changed.add(source)


def _offer(run: Run, leaving: Sequence[str], round_index: int) -> dict[str, Any]:
    """Let each of these sources be in a file; which one, and which are there for this alone."""
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
        except (OSError, RuntimeError) as error:  # torch has its own for a failed write
            offer["failed"] = (
                f"{run.held.files.folder / source} could not be written "
                f"({str(error).splitlines()[0]}), and another worker needs it to train {source}: "
                f"make room on that disk; the same command continues from the last checkpoint"
            )
            break
        offer["states"][source] = at
    return offer


def _take(run: Run, source: str, state: tuple[int, int], holder: int) -> None:
    try:
        found = run.held.files.load(source, state)
    except ValueError as error:
        raise NotSaved(
            f"what worker {holder} has written of {source} cannot be read here as it was written: "
            f"look at the disk of {run.held.files.folder}; the same command continues from the "
            f"last checkpoint"
        ) from error
    run.take(source, found)
    run.held.in_file[source] = state
