"""Noise that a silo adds to its updates: its size, its independence, and what it guarantees."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from dept.errors import ConfigError
from dept.method.local_privacy import LocalPrivacy, epsilon_of, noisy, normal_numbers

SECRET, OTHER = b"a" * 32, b"b" * 32


def update(scale=1.0, seed=0):
    draw = np.random.default_rng(seed)
    shapes = {"body": (40, 30), "bias": (7,), "row": (1,)}
    return {n: torch.tensor(scale * draw.normal(size=s)).float() for n, s in shapes.items()}


def flat(tensors):
    return np.concatenate([tensors[name].double().numpy().ravel() for name in sorted(tensors)])


def test_numbers_are_independent_and_normal():
    one, other = normal_numbers(SECRET, "x", 1_200_001), normal_numbers(SECRET, "y", 1_200_001)
    assert len(one) == 1_200_001  # more than two blocks, and odd
    for numbers in (one, other):
        assert stats.kstest(numbers, "norm").pvalue > 1e-3
        assert np.isfinite(numbers).all() and np.abs(numbers).max() > 4.5
    pairs = [(one, other), (one, normal_numbers(OTHER, "x", len(one))), (one[:-1], one[1:])]
    half = 1 << 19  # the two parts of a pair
    for a, b in [*pairs, (one[:half], one[half : 2 * half])]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(len(a))
    assert np.array_equal(one[:1000], normal_numbers(SECRET, "x", 1_200_001)[:1000])


@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_an_update_is_clipped_as_flower_clips_it_and_gets_noise_of_that_size(scale):
    flower = pytest.importorskip("flwr.supercore.differential_privacy")
    given = update(scale)
    privacy = LocalPrivacy(clip_update_norm=0.5, noise_multiplier=1e-6)
    arrays = [given[name].double().numpy().copy() for name in sorted(given)]
    flower.compute_clip_model_update(arrays, [np.zeros_like(a) for a in arrays], 0.5)
    clipped = np.concatenate([a.ravel() for a in arrays])
    quiet = flat(noisy(given, privacy, SECRET, "en", 3))
    np.testing.assert_allclose(quiet, clipped, atol=4e-6)

    loud = LocalPrivacy(clip_update_norm=0.5, noise_multiplier=8.0)
    noise = flat(noisy(given, loud, SECRET, "en", 3)) - clipped
    assert stats.kstest(noise / 4.0, "norm").pvalue > 1e-3


def test_the_same_update_has_the_same_noise_and_no_other_has():
    privacy = LocalPrivacy(clip_update_norm=100.0, noise_multiplier=1.0)
    given, near = update(), update()
    near["bias"][0] += 1e-6
    base = noisy(given, privacy, SECRET, "en", 3)
    again = noisy(given, privacy, SECRET, "en", 3)
    assert all(torch.equal(base[name], again[name]) for name in base)
    noise = flat(base) - flat(given)
    for other, theirs in (
        (noisy(given, privacy, OTHER, "en", 3), given),
        (noisy(given, privacy, SECRET, "it", 3), given),
        (noisy(given, privacy, SECRET, "en", 4), given),
        (noisy(near, privacy, SECRET, "en", 3), near),
    ):
        rest = flat(other) - flat(theirs)
        assert abs(np.corrcoef(noise, rest)[0, 1]) < 5 / math.sqrt(len(noise))


def hockey_stick(epsilon, distance):
    """The delta of two normal distributions of deviation 1 whose means are that far apart."""
    x = np.linspace(-40, 40 + distance, 2_000_001)
    first, second = stats.norm.pdf(x, loc=distance), stats.norm.pdf(x)
    return np.trapezoid(np.maximum(first - math.exp(epsilon) * second, 0), x)


@pytest.mark.parametrize("multipliers", [[4.0], [4.0] * 10, [3.0, 5.0, 8.0]])
def test_epsilon_is_that_of_the_two_updates_that_are_farthest_apart(multipliers):
    """Updates of norm C in opposite directions, under noise of z C, message after message."""
    distance = math.sqrt(sum((2 / z) ** 2 for z in multipliers))
    found = epsilon_of(multipliers, 1e-5)
    assert hockey_stick(found, distance) == pytest.approx(1e-5, rel=1e-3)


def test_one_message_is_better_than_what_flower_promises_for_the_same_noise():
    """Flower's ``LocalDpMod`` has the classical bound, of one message and epsilon below 1."""
    clip, epsilon, delta = 0.5, 0.8, 1e-5
    deviation = 2 * clip * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    assert 0.5 * epsilon < epsilon_of([deviation / clip], delta) < epsilon
    assert epsilon_of([], delta) == 0.0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"noise_multiplier": 1.0}, "lacks clip_update_norm"),
        ({"clip_update_norm": 1.0}, "lacks noise_multiplier"),
        ({"clip_update_norm": 0, "noise_multiplier": 1.0}, "clip_update_norm is 0"),
        ({"clip_update_norm": 1.0, "noise_multiplier": "a"}, "noise_multiplier is"),
        ({"clip_update_norm": 1.0, "noise_multiplier": 1.0, "delta": 1}, "delta is 1"),
        ({"clip_update_norm": 1.0, "epsilon": 1.0}, "no option 'epsilon'"),
    ],
)
def test_options_that_guarantee_nothing_are_refused(options, why):
    with pytest.raises(ConfigError, match=why):
        LocalPrivacy.of(options)
