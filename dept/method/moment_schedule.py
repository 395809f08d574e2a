"""When moments of the inner optimizer are averaged, without torch, which is slow to import."""

from __future__ import annotations

from collections.abc import Mapping

FIRST, SECOND = "exp_avg", "exp_avg_sq"
"""Names of the first and the second moment in the state of Adam and its relatives."""

INTERVAL: dict[str, int] = {FIRST: 3, SECOND: 6}
"""Default of ``algorithms.dept.inner_state_interval``, in rounds: K_u = 3 K_x, K_v = 6 K_x."""


def due(interval: Mapping[str, int], round_number: int) -> list[str]:
    """The moments that are averaged at the end of a round.

    Args:
        interval: rounds between two averages, by moment; empty if none is averaged.
        round_number: number of the round, from 1.
    """
    return [moment for moment, every in interval.items() if round_number % every == 0]


def exchanges(interval: Mapping[str, int], rounds: int | None) -> float:
    """Mean number of moments that are averaged in a round.

    Args:
        interval: rounds between two averages, by moment; empty if none is averaged.
        rounds: rounds of the run; ``None`` for a run without end.
    """
    if rounds is None:
        return sum(1 / every for every in interval.values())
    return sum(rounds // every for every in interval.values()) / rounds
