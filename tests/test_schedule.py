"""Rounds, slots and local steps."""

from collections import Counter

import pytest

from dept.schedule import RoundSchedule, sequential_step

NAMES = tuple("abcdefgh")


def schedule(count: int = 3, local_steps: int = 5, seed: int = 1) -> RoundSchedule:
    return RoundSchedule(NAMES, sources_per_round=count, local_steps=local_steps, seed=seed)


def test_a_draw_is_a_function_of_seed_and_round_alone():
    assert [schedule().drawn(t) for t in range(9)] == [schedule().drawn(t) for t in range(9)]
    assert schedule().drawn(7) == schedule(local_steps=99).drawn(7)
    assert [schedule(seed=1).drawn(t) for t in range(9)] != [
        schedule(seed=2).drawn(t) for t in range(9)
    ]


def test_draws_are_without_replacement_and_uniform():
    drawn = [schedule().drawn(t) for t in range(4000)]
    assert all(len(set(names)) == 3 for names in drawn)
    times = Counter(name for names in drawn for name in names)
    # 4000 draws of 3 of 8: 1500 each, standard deviation 31
    assert all(abs(times[name] - 1500) < 5 * 31 for name in NAMES)


def test_drawing_all_keeps_the_order_of_the_corpus():
    assert {schedule(count=8).drawn(t) for t in range(5)} == {NAMES}


def test_batches_of_a_round_belong_to_slots_in_turn():
    assert [schedule(local_steps=2).slot_of_batch(b) for b in range(6)] == [0, 0, 1, 1, 2, 2]
    assert schedule(local_steps=2).batches_per_round == 6


def test_every_slot_of_a_round_takes_the_same_sequential_steps():
    steps = [sequential_step(b, local_steps=2, sources_per_round=3) for b in range(12)]
    assert steps == [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]
    assert [sequential_step(b, 4, 1) for b in range(9)] == list(range(9))


@pytest.mark.parametrize("count", [0, 9])
def test_more_sources_than_there_are_is_refused(count):
    with pytest.raises(ValueError, match=r"sources_per_round is .* from 1 to 8"):
        schedule(count=count)


def test_a_name_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        RoundSchedule(("a", "a"), sources_per_round=1, local_steps=1, seed=0)
