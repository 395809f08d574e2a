"""Rounds whose sources change: draws, holders and batches, by counting."""

import numpy as np
import pytest

from dept.method.periods import Period
from dept.method.sampling import RULES
from dept.method.schedule import RoundSchedule
from dept.method.streams import seed_of

THREE, FOUR = ("a", "b", "c"), ("a", "b", "c", "d")


def schedule(sources, count=2, workers=1, sampling="uniform"):
    return RoundSchedule(sources, count, 5, 1, workers, sampling)


def drawn_by_hand(sources, count, t):
    generator = np.random.default_rng(seed_of(1, "sampling", t))
    return tuple(sources[i] for i in sorted(generator.choice(len(sources), count, replace=False)))


def test_rounds_before_a_change_are_drawn_as_they_were_and_later_ones_from_the_new_sources():
    now = schedule(FOUR, 3).after(schedule(THREE).periods, 4)
    assert now.since == 4 and [p.first for p in now.periods] == [0, 4]
    for t in range(12):
        expected = drawn_by_hand(THREE, 2, t) if t < 4 else drawn_by_hand(FOUR, 3, t)
        assert now.drawn(t) == expected == now.slots_of(0, t)
        assert now.batches_of(t) == 5 * len(expected)
        assert now.batches_before(t) == 5 * sum(len(now.drawn(u)) for u in range(t))


def test_a_third_set_keeps_both_before_and_what_was_stored_gives_the_same_draws():
    second = schedule(FOUR).after(schedule(THREE).periods, 2)
    stored = [Period.of(period.state_dict()) for period in second.periods]
    third = schedule(("d", "a")).after(stored, 5)
    assert third.drawn(1) == drawn_by_hand(THREE, 2, 1)
    assert third.drawn(4) == drawn_by_hand(FOUR, 2, 4)
    assert third.drawn(7) == drawn_by_hand(("d", "a"), 2, 7)
    again = schedule(("d", "a")).after(third.periods, third.since)
    assert again == third


def test_a_change_that_is_taken_back_before_its_round_leaves_no_trace():
    before = schedule(THREE)
    ahead = schedule(FOUR).after(before.periods, 3)
    assert schedule(THREE).after(ahead.periods, 3) == before
    assert schedule(FOUR).after(before.periods, 0) == schedule(FOUR)  # nothing was trained yet


def test_batches_before_a_change_are_those_of_all_workers_together():
    now = schedule(FOUR, 4, workers=4).after(schedule(THREE, 3).periods, 2)
    assert now.batches_before(2) == 2 * 3 * 5 // 4
    assert now.batches_before(4) - now.batches_before(2) == 2 * 5


@pytest.mark.parametrize("sampling", RULES)
@pytest.mark.parametrize("workers", [1, 2])
def test_from_the_change_on_sources_are_held_by_who_trained_them_since(workers, sampling):
    now = schedule(FOUR, 2, workers, sampling).after(schedule(THREE).periods, 3)
    for t in range(3, 20):
        holders = now.holders(t)
        assert tuple(holders) == FOUR
        for worker in range(workers):
            assert all(holders[source] == worker for source in now.slots_of(worker, t))
        last = {}
        for u in range(3, t + 1):
            last |= {s: w for w in range(workers) for s in now.slots_of(w, u)}
        assert holders.items() >= last.items()
    alone = schedule(("c", "d")).after(schedule(THREE).periods, 3)
    assert {*alone.held_by(0, 2)} == {"c", "d", *alone.drawn(2)}
