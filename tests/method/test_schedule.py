"""Rounds, slots and local steps, and how workers share them."""

from collections import Counter

import pytest

from dept.method.sampling import RULES
from dept.method.schedule import RoundSchedule

NAMES = tuple("abcdefgh")


def schedule(count=3, local_steps=5, seed=1, workers=1, sampling="uniform") -> RoundSchedule:
    return RoundSchedule(NAMES, count, local_steps, seed, workers, sampling)


def test_a_draw_is_a_function_of_seed_and_round_alone():
    assert [schedule().drawn(t) for t in range(9)] == [schedule().drawn(t) for t in range(9)]
    assert schedule().drawn(7) == schedule(local_steps=99).drawn(7)
    assert [schedule(seed=1).drawn(t) for t in range(9)] != [
        schedule(seed=2).drawn(t) for t in range(9)
    ]


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_draws_are_without_replacement_and_every_source_has_the_same_chance(count):
    drawn = [schedule(count).drawn(t) for t in range(4000)]
    assert all(len(set(names)) == count for names in drawn)
    times = Counter(name for names in drawn for name in names)
    mean = 4000 * count / 8
    deviation = (mean * (1 - count / 8)) ** 0.5
    assert all(abs(times[name] - mean) < 5 * deviation for name in NAMES)


def test_drawing_all_keeps_the_order_of_the_corpus():
    assert {schedule(count=8).drawn(t) for t in range(5)} == {NAMES}


@pytest.mark.parametrize(
    ("count", "workers"), [(8, 2), (8, 4), (8, 8), (4, 2), (4, 4), (2, 2), (6, 2), (6, 3), (3, 3)]
)
def test_workers_share_a_round_equally_and_may_keep_their_sources(count, workers):
    shared = schedule(count, workers=workers, sampling="stratified")
    belongings = [shared.sources_of(w) for w in range(workers)]
    assert tuple(name for own in belongings for name in own) == NAMES
    for t in range(50):
        slots = [shared.slots_of(w, t) for w in range(workers)]
        assert tuple(name for own in slots for name in own) == shared.drawn(t)
        assert {len(own) for own in slots} == {count // workers}
        assert all(set(own) <= set(belongs) for own, belongs in zip(slots, belongings, strict=True))


@pytest.mark.parametrize(("count", "workers"), [(8, 2), (8, 8), (4, 2), (4, 4), (2, 2), (6, 2)])
def test_what_is_drawn_does_not_depend_on_the_number_of_workers(count, workers):
    for sampling in RULES:
        alone = schedule(count, sampling=sampling)
        shared = schedule(count, workers=workers, sampling=sampling)
        assert [alone.drawn(t) for t in range(50)] == [shared.drawn(t) for t in range(50)]


def test_workers_that_no_equal_groups_serve_still_draw_every_source():
    unequal = schedule(3, workers=3, sampling="stratified")
    times = Counter(name for t in range(3000) for name in unequal.drawn(t))
    # groups ab, cde, fgh
    assert all(abs(times[name] - 1500) < 5 * 27.4 for name in "ab")
    assert all(abs(times[name] - 1000) < 5 * 25.9 for name in "cdefgh")


def test_what_is_left_of_a_round_is_what_no_source_has_done():
    two = schedule(count=8, local_steps=2, workers=2)
    assert two.batches_per_round == 8
    assert two.remaining(0, 0, {})[:4] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    done = {"a": 2, "b": 1, "d": 1, "e": 2}
    assert two.remaining(0, 0, done) == [("b", 1), ("c", 0), ("c", 1), ("d", 1)]
    every = schedule(count=8, local_steps=2).remaining(0, 0, done)
    assert every == two.remaining(0, 0, done) + two.remaining(1, 0, done)


@pytest.mark.parametrize("count", [0, 9])
def test_more_sources_than_there_are_is_refused(count):
    with pytest.raises(ValueError, match=r"sources_per_round is .* from 1 to 8"):
        schedule(count=count)


def test_workers_that_cannot_share_are_refused_with_those_that_can():
    with pytest.raises(ValueError, match=r"start 1, 2 or 4 workers, or set .* to 3 or 6"):
        schedule(count=4, workers=3)
    with pytest.raises(ValueError, match=r"equally: start 1, 2, 4 or 8 workers$"):
        schedule(count=8, workers=16)


def test_a_name_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        RoundSchedule(("a", "a"), sources_per_round=1, local_steps=1, seed=0)
