"""The draw of a round's sources, S_t from S, as a function of seed and round alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np

from dept.method.streams import seed_of

UNIFORM = "uniform"
"""Every subset of size ``|S_t|`` is equally likely (Algorithm 1, line 1)."""

STRATIFIED = "stratified"
"""Equally many sources from each group of neighbours, so that each always stays on one worker."""

RULES = (UNIFORM, STRATIFIED)


def groups_of(rule: str, *, sources: int, drawn: int, workers: int) -> int:
    """Number of groups of neighbours that sources are drawn from.

    ``uniform`` draws from one group of all sources. ``stratified`` uses as many groups as the
    greatest common divisor of ``|S|`` and ``|S_t|``. Equal groups give every source the same
    chance, though not every pair of sources, for any number of workers. If the number of workers
    does not divide it, it needs ``|S_t|`` groups, which differ by one source: see :func:`chances`.

    Args:
        rule: one of :data:`RULES`.
        sources: ``|S|``.
        drawn: ``|S_t|``; if all sources are drawn, each is a group, whatever the rule.
        workers: a divisor of ``drawn``.
    """
    if drawn == sources:
        return sources
    if rule == UNIFORM:
        return 1
    equal = math.gcd(sources, drawn)
    return equal if equal % workers == 0 else drawn


def grouped(sources: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Cut ``sources`` into ``count`` groups of neighbours, as equal in size as possible.

    Args:
        sources: names of the sources ``S``, in the order of the corpus.
        count: number of groups, from 1 to ``|S|``. A draw from one group is that of Algorithm 1,
            line 1.

    Returns:
        The groups, in the order of ``sources``. Sizes differ by one source at most.
    """
    ends = [len(sources) * i // count for i in range(count + 1)]
    return [tuple(sources[first:last]) for first, last in pairwise(ends)]


def draw(
    groups: Sequence[Sequence[str]], of_each: int, *, seed: int, round_index: int
) -> tuple[str, ...]:
    """Draw the sources of a round, S_t, without replacement (Algorithm 1, line 1).

    Args:
        groups: groups of sources.
        of_each: how many sources to draw from each group.
        seed: seed of the run.
        round_index: from 0. The draw depends on it and on ``seed`` alone.

    Returns:
        The sources, in the order of the groups.
    """
    generator = np.random.default_rng(seed_of(seed, "sampling", round_index))
    chosen = [generator.choice(len(group), size=of_each, replace=False) for group in groups]
    return tuple(
        group[i] for group, drawn in zip(groups, chosen, strict=True) for i in sorted(drawn)
    )


def chances(groups: Sequence[Sequence[str]], of_each: int) -> dict[str, Fraction]:
    """The probability of each source to be drawn in a round.

    Args:
        groups: groups of sources.
        of_each: how many sources are drawn from each group.

    Returns:
        Exact probabilities by source.
    """
    return {source: Fraction(of_each, len(group)) for group in groups for source in group}
