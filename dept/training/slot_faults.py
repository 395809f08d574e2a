"""Check slots for numerical faults, and agree between workers on the updates to leave out."""

from __future__ import annotations

import math

from dept.errors import NumericalFault
from dept.log import log
from dept.method import faults
from dept.training.run import Run


def look_at_loss(run: Run, source: str, loss: float) -> None:
    """After a local step: record the first loss that is not finite.

    Args:
        run: the run of this worker, whose record of the slot is changed.
        source: the source of the slot.
        loss: loss of the step, in nats per token.
    """
    record = run.records[source]
    if not math.isfinite(loss) and record.fault is None:
        why = f"its loss was {loss} at local step {record.steps}"
        record.fault = run.fault(source, why, record.steps)


def judge(run: Run, source: str) -> bool:
    """After the last local step of a slot: decide whether its update may be averaged.

    Args:
        run: the run of this worker.
        source: the source of the slot.

    Raises:
        NumericalFault: it may not, and ``algorithms.dept.faults`` is ``stop``.
    """
    record, slots = run.records[source], run.slots
    values = slots.live.values()
    local = {name: values[name] for name in slots.shared_names}
    norms = slots.update_norms(source, local)
    record.norm = math.hypot(*(norms[name] for name in slots.body_names))
    norm = math.hypot(*norms.values())
    record.reach = faults.reach(norm, record.rates)
    fault = record.fault
    if fault is None:
        why = faults.of_update(
            values=values,
            states=slots.live.states(),
            norm=norm,
            here=record.reach,
            history=run.totals["reaches"].get(source, []),
            limit=run.options.outlier_multiple,
        )
        fault = None if why is None else run.fault(source, why)
    record.fault = fault = run.workers.first_of_ranks(fault)
    if fault is not None and run.options.faults == "stop":
        raise NumericalFault(
            f"{faults.describe(fault)}: check these samples, or set algorithms.dept.faults to "
            f"leave_out, with which the same command resumes from the last checkpoint"
        )
    return fault is None


def left_out(run: Run, stage: str) -> dict[str, faults.Fault]:
    """The faults of this round, the same on every worker; the first one logs them.

    Args:
        run: the run of this worker.
        stage: name of this point in errors.

    Returns:
        The faults by source.

    Raises:
        WorkerLost: another worker did not arrive.
    """
    here = {source: record.fault for source, record in run.records.items() if record.fault}
    every = run.workers.gather(here, stage=stage)
    found = {source: fault for given in every for source, fault in given.items()}
    if run.workers.place.global_rank == 0:
        whole = 0 < len(found) == len(run.schedule.drawn(run.totals["rounds"]))
        is_unchanged = whole and run.reductions.aggregation.privacy is None  # else there is noise
        for line in faults.messages(found.values(), is_unchanged):
            log.warning(line)
    return found
