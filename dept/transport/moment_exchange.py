"""Average the moments of inner optimizers across workers, in the rounds in which they are due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dept.errors import NumericalFault
from dept.method.averaging import Average, Share
from dept.method.faults import not_finite
from dept.method.moment_schedule import due
from dept.method.source_state import Slots
from dept.transport.reductions import Reductions
from dept.transport.workers import Workers


def average_moments(
    slots: Slots,
    reductions: Reductions,
    workers: Workers,
    shares: Sequence[Mapping[str, Share]],
    round_number: int,
    *,
    stage: str,
) -> tuple[dict[str, dict[str, Average]], float]:
    """Average the moments that are due at the end of a round; nothing is changed.

    Args:
        slots: the state of the sources of this worker, whose slots have ended.
        reductions: makes the reduction of each moment.
        workers: the workers of the job. All must make this call.
        shares: for each worker, the shares of the sources in the average; not all empty.
        round_number: number of the round, from 1.
        stage: name of this point in errors.

    Returns:
        The averages by moment and parameter, and the largest step count of the sources in them.

    Raises:
        NumericalFault: an average is not finite, or a message is not as it was sent.
        WorkerLost: another worker did not arrive.
    """
    averages: dict[str, dict[str, Average]] = {}
    if slots.moments is None:
        return averages, 0.0
    own, every = shares[workers.place.worker], {source for of in shares for source in of}
    order = [source for source in slots.vocabularies if source in every]
    for moment in due(slots.moments.interval, round_number):
        reduction = reductions.open_for_moments(slots.moments.start(moment, slots.start), order)
        for source, share in own.items():
            reduction.add(source, slots.moments_of(source, moment), share)
        averages[moment] = reduction.averages(workers, shares, stage=stage)
        broken = not_finite({name: average.value for name, average in averages[moment].items()})
        if broken is not None:
            raise NumericalFault(
                f"the average {moment} of {broken} is not finite, and the global model is "
                f"unchanged: lower optimizer.lr"
            )
    if not averages:
        return averages, 0.0
    steps = [
        float(slots.inner[source][name]["step"])
        for source in own
        for name in slots.shared_names
        if name in slots.inner[source]
    ]
    return averages, max(workers.gather(max(steps, default=0.0), stage=stage))
