"""Differential privacy of the average: published values, integrals, and the noise itself."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest, norm

from dept.method.privacy import Privacy, delta_of, epsilon, noisy_mean

# Sensitivity over deviation, epsilon and delta, as in the tests of Google's differential-privacy
# library (python/dp_accounting, privacy_loss_mechanism_test.py).
PUBLISHED = [(1, 1, 0.12693674), (3, 1, 0.78760074), (1, 2, 0.02092364)]


@pytest.mark.parametrize(("ratio", "at", "delta"), PUBLISHED)
def test_one_round_has_the_published_guarantee(ratio, at, delta):
    assert delta_of(at, 1 / ratio, 1) == pytest.approx(delta, abs=1e-8)
    assert epsilon(1 / ratio, 1, delta) == pytest.approx(at, abs=1e-6)


def test_the_published_deviation_for_a_small_delta():
    """0.344, of three digits, for epsilon 16 and delta 1e-5 in the same file."""
    assert epsilon(0.3445, 1, 1e-5) < 16 < epsilon(0.3435, 1, 1e-5)


@pytest.mark.parametrize(("multiplier", "rounds"), [(1.0, 1), (2.0, 9), (0.7, 4), (5.0, 100)])
@pytest.mark.parametrize("at", [0.1, 1.0, 4.0])
def test_many_rounds_are_one_observation_of_their_sum(multiplier, rounds, at):
    """The divergence of the two distributions of the sum of all rounds, by integration."""
    apart, deviation = rounds, multiplier * math.sqrt(rounds)  # a source adds 1 to each round

    def excess(x):
        p, q = norm.pdf(x, apart, deviation), norm.pdf(x, 0, deviation)
        return max(0.0, p - math.exp(at) * q)

    middle = apart / 2 + at * deviation**2 / apart  # where it begins
    expected, _ = quad(excess, middle, middle + 30 * deviation, limit=500)
    assert delta_of(at, multiplier, rounds) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def renyi_bound(multiplier, rounds, delta):
    """Mironov 2017 with the conversion of Canonne, Kamath and Steinke 2020: an upper bound."""
    orders = np.concatenate([np.linspace(1.01, 20, 2000), np.arange(20, 2000)])
    divergence = rounds * orders / (2 * multiplier**2)
    bounds = divergence + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return bounds.min()


@pytest.mark.parametrize("multiplier", [0.3, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("rounds", [1, 10, 1000])
def test_it_is_a_little_below_the_bound_by_renyi_divergences(multiplier, rounds):
    ours, bound = epsilon(multiplier, rounds, 1e-5), renyi_bound(multiplier, rounds, 1e-5)
    assert 0.8 * bound - 0.02 < ours <= bound


def test_more_rounds_or_less_noise_are_less_private_and_none_are_perfect():
    assert epsilon(1.0, 0, 1e-5) == 0.0 and epsilon(1e5, 1, 1e-5) == 0.0
    assert Privacy(1.0).epsilon(4) == epsilon(1.0, 4, 1e-5) == epsilon(0.5, 1, 1e-5)
    values = [epsilon(z, t, 1e-5) for z, t in ((2, 1), (1, 1), (1, 9), (0.01, 900))]
    assert values == sorted(values) and math.isfinite(values[-1])


START = {"b": torch.zeros(40, 50), "a": torch.zeros(700)}


def noisy(seed, deviation=3.0, updates=(), drawn=4):
    return noisy_mean(list(updates), START, drawn=drawn, deviation=deviation, seed=seed)


def test_the_noise_is_gaussian_of_the_stated_deviation_and_of_its_seed_alone():
    ours = noisy(5)
    assert all(torch.equal(ours[n], noisy(5)[n]) for n in START)
    assert not torch.equal(ours["a"], noisy(6)["a"])
    flat = torch.cat([ours["a"], ours["b"].flatten()]).numpy()
    assert kstest(flat, norm(0, 3.0 / 4).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 0.1


def test_a_source_that_was_left_out_counts_as_zero():
    ones = {name: torch.ones_like(value) for name, value in START.items()}
    with_two = noisy(5, updates=[ones, ones])
    for name, value in noisy(5).items():
        torch.testing.assert_close(with_two[name], value + 2 / 4)
