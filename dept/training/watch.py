"""When slots are looked at for numerical faults, and how workers agree on what is left out."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from composer.core import State

from dept.errors import NumericalFault
from dept.method import faults

if TYPE_CHECKING:
    from dept.training.algorithm import Dept


def take_step(dept: Dept, state: State, source: str, loss: float) -> None:
    """After a local step: remember its learning rate, and the first loss that is not finite."""
    slot = dept.round[source]
    slot.setdefault("rates", []).append(dept.rate)
    if not math.isfinite(loss) and slot.get("fault") is None:
        step = len(slot["losses"])
        slot["fault"] = _fault(
            dept, state, source, f"its loss was {loss} at local step {step}", step
        )


def judge(dept: Dept, state: State, source: str) -> bool:
    """After the last local step of a slot, before it is ended: whether its update may be averaged.

    Raises:
        NumericalFault: it may not, and the run is to stop at faults.
    """
    slot, slots = dept.round[source], dept.slots
    local = {name: slots.live.values()[name] for name in slots.shared_names}
    norm = slots.handed_over_norm(source, local)
    # A checkpoint of an earlier version in mid-slot does not know all rates.
    is_known = len(slot["rates"]) == len(slot["losses"])
    slot["reach"] = faults.reach(norm, slot["rates"]) if is_known else None
    fault = slot.get("fault")
    if fault is None:
        why = faults.of_update(
            values=slots.live.values(),
            states=slots.live.states(),
            norm=norm,
            here=slot["reach"],
            history=dept.totals["reaches"].get(source, []),
            limit=dept.options.outlier_multiple,
        )
        fault = None if why is None else _fault(dept, state, source, why)
    slot["fault"] = fault = dept.workers.first_of_ranks(fault)
    if fault is not None and dept.options.faults == "stop":
        raise NumericalFault(
            f"{faults.describe(fault)}: look at these, or set algorithms.dept.faults to leave_out, "
            f"with which the same command goes on from the last checkpoint"
        )
    return fault is None


def left_out(dept: Dept, stage: str) -> dict[str, faults.Fault]:
    """What no average may hold of this round, on every worker alike; the first one tells.

    Raises:
        WorkerLost: another worker did not come.
    """
    here = {source: slot["fault"] for source, slot in dept.round.items() if slot.get("fault")}
    every = dept.workers.gather(here, stage=stage)
    found = {source: fault for given in every for source, fault in given.items()}
    if dept.workers.place.global_rank == 0:
        whole = len(found) == dept.schedule.sources_per_round
        for line in faults.told(found.values(), whole):
            print(line, file=sys.stderr, flush=True)
    return found


def _fault(
    dept: Dept, state: State, source: str, why: str, step: int | None = None
) -> faults.Fault:
    batches = dept.options.local_steps if step is None else 1
    samples, positions = dept.loader.read_last(source, batches)
    return {
        "source": source,
        "round": state.timestamp.epoch.value + 1,
        "why": why,
        "step": step,
        "samples": [] if step is None else samples,
        "positions": list(positions),
    }
