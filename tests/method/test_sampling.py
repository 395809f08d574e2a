"""How sources are drawn, which worker holds them then, and that chances are what they should be."""

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import chi2

from dept.config.dept_checks import note_on_chances
from dept.method.sampling import RULES, STRATIFIED
from dept.method.schedule import RoundSchedule
from dept.method.streams import seed_of

NAMES = tuple("abcdefgh")
ROUNDS = 20_000


def schedule(count=4, workers=1, sampling="uniform", seed=1) -> RoundSchedule:
    return RoundSchedule(NAMES, count, 5, seed, workers, sampling)


@pytest.mark.parametrize("count", [4, 6])
def test_every_subset_is_equally_likely_and_every_pair_too(count):
    drawn = Counter(schedule(count).drawn(t) for t in range(ROUNDS))
    subsets = list(combinations(NAMES, count))
    assert set(drawn) == set(subsets)  # each in the order of the corpus
    expected = ROUNDS / len(subsets)
    distance = sum((drawn[subset] - expected) ** 2 / expected for subset in subsets)
    assert distance < chi2.ppf(1 - 1e-4, len(subsets) - 1)
    chance = count * (count - 1) / (8 * 7)  # hypergeometric: both of two are drawn
    deviation = math.sqrt(ROUNDS * chance * (1 - chance))
    for pair in combinations(NAMES, 2):
        times = sum(n for subset, n in drawn.items() if {*pair} <= {*subset})
        assert abs(times - ROUNDS * chance) < 4.5 * deviation, pair


def test_the_draw_is_the_one_that_is_documented_and_no_number_of_workers_changes_it():
    for t in range(100):
        generator = np.random.default_rng(seed_of(1, "sampling", t))
        chosen = sorted(generator.choice(8, size=4, replace=False))
        for workers in (1, 2, 4):
            assert schedule(workers=workers).drawn(t) == tuple(NAMES[i] for i in chosen)


@pytest.mark.parametrize(("count", "workers"), [(4, 1), (4, 2), (4, 4), (6, 2), (6, 6), (3, 3)])
def test_a_source_is_held_by_who_trained_it_last(count, workers):
    shared = schedule(count, workers)
    assert shared.moves == (workers > 1)
    last: dict[str, int] = {}
    for t in range(60):
        slots = [shared.slots_of(worker, t) for worker in range(workers)]
        assert tuple(name for own in slots for name in own) == shared.drawn(t)
        assert {len(own) for own in slots} == {count // workers}
        before, holders = dict(last), shared.holders(t)
        last |= {name: worker for worker, own in enumerate(slots) for name in own}
        assert holders.items() >= last.items() and tuple(holders) == NAMES
        held = [shared.held_by(worker, t) for worker in range(workers)]
        assert sorted(name for own in held for name in own) == list(NAMES)
        assert max(map(len, held)) <= shared.most_held(60)
        if t:
            moving = shared.moving(t - 1, t)
            assert {*moving} <= {*shared.drawn(t)}  # nothing moves but to be trained
            assert all(before.get(s, old) == old for s, (old, _) in moving.items())
            assert all(holders[s] == new for s, (_, new) in moving.items())
    if workers > 1:
        assert all(shared.sources_of(worker) == NAMES for worker in range(workers))
        assert any(shared.moving(t, t + 1) for t in range(60))


@pytest.mark.parametrize(
    "still", [schedule(8, 2), schedule(8, 8), schedule(4, 1), schedule(6, 3, STRATIFIED)]
)
def test_nothing_moves_if_all_are_drawn_or_one_worker_trains_or_sources_belong_to_one(still):
    assert not still.moves
    homes = {name: w for w in range(still.workers) for name in still.sources_of(w)}
    assert all(still.holders(t) == homes for t in range(50)) and {*homes} == {*NAMES}
    assert not any(still.moving(t, t + 1) for t in range(50))
    assert still.most_held(50) == max(Counter(homes.values()).values())


@pytest.mark.parametrize(
    ("count", "workers", "drawn", "belong"),
    [
        (4, 1, "aceh acfh adeh adfh aceg acfg", "abcdefgh"),
        (4, 2, "aceh acfh adeh adfh aceg acfg", "abcd efgh"),
        (6, 2, "abcefh abdfgh acdfgh acdegh acdfgh abcefg", "abcd efgh"),
        (6, 3, "abcefg abcefg abcefh abcefh abcefg abcefg", "ab cde fgh"),
    ],
)
def test_stratified_draws_as_it_always_did(count, workers, drawn, belong):
    old = schedule(count, workers, STRATIFIED)
    assert ["".join(old.drawn(t)) for t in range(6)] == drawn.split()
    assert ["".join(old.sources_of(w)) for w in range(workers)] == belong.split()


def test_unequal_chances_are_said_in_one_sentence_with_the_chance_of_each_source():
    for rule in RULES:
        assert note_on_chances(schedule(4, 2, rule)) == []
    assert note_on_chances(schedule(6, 6)) == []
    unequal = schedule(6, 6, STRATIFIED)
    (note,) = note_on_chances(unequal)
    assert note.endswith("to be in a round is 1 for a, b, e, f; 1/2 for c, d, g, h")
    assert sum(unequal.chances.values()) == 6
    drawn = Counter(name for t in range(2000) for name in unequal.drawn(t))
    for name, chance in unequal.chances.items():
        assert chance == 1 or abs(drawn[name] / 2000 - chance) < Fraction(1, 20)
        assert (chance == 1) == (drawn[name] == 2000)
