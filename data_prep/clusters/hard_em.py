"""Divide points among clusters of equal size: alternate between models and the best division."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

ROUNDS, PRICE_STEPS = 50, 400
UNEVEN = 0.01  # of the size of a cluster, at which prices are good enough

Models = TypeVar("Models")


class Division(NamedTuple):
    """Points divided among clusters.

    Attributes:
        chosen: int64[n], the cluster of each point.
        prices: float64[k]; a point belongs to the cluster of the largest ``score - price``.
        objective: mean score of a point in its cluster, by size.
    """

    chosen: np.ndarray
    prices: np.ndarray
    objective: float


def even_prices(scores: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Prices at which each cluster is chosen by about the same size of points.

    They are the dual variables of the assignment problem with equal capacities, found by
    subgradient steps that shrink. Identical points are never divided, so sizes may stay uneven.

    Args:
        scores: float[n, k], how well each point fits each cluster.
        sizes: float[n], size of each point.

    Returns:
        float64[k], with mean 0.
    """
    count = scores.shape[1]
    prices, best, least = np.zeros(count), np.zeros(count), np.inf
    step = float(np.ptp(scores, axis=1).mean()) or 1.0
    for number in range(PRICE_STEPS):
        chosen = (scores - prices).argmax(axis=1)
        share = np.bincount(chosen, sizes, count) / sizes.sum() * count
        uneven = np.abs(share - 1).max()
        if uneven < least:
            best, least = prices, uneven
        if uneven <= UNEVEN:
            break
        prices = prices + step / (1 + number / 4) * np.clip(share - 1, -1, 1)
        prices = prices - prices.mean()
    return best


def hard_em(
    models: Models,
    score: Callable[[Models], np.ndarray],
    fit: Callable[[np.ndarray], Models],
    sizes: np.ndarray,
    *,
    balanced: bool,
) -> tuple[Models, Division]:
    """Give each point to its best cluster and fit the clusters again, until nothing changes.

    Args:
        models: models of the clusters to begin with.
        score: gives float[n, k], how well each point fits each model.
        fit: gives the models for int64[n], the cluster of each point.
        sizes: float[n], size of each point.
        balanced: whether clusters get equal sizes, as in c-BTM (Gururangan et al. 2023).

    Returns:
        The models, and the division by them.
    """
    chosen = np.full(len(sizes), -1)
    for _ in range(ROUNDS):
        scores = score(models)
        prices = even_prices(scores, sizes) if balanced else np.zeros(scores.shape[1])
        before, chosen = chosen, (scores - prices).argmax(axis=1)
        if np.array_equal(before, chosen):
            break
        models = fit(chosen)
    scores = score(models)
    prices = even_prices(scores, sizes) if balanced else np.zeros(scores.shape[1])
    chosen = (scores - prices).argmax(axis=1)
    own = scores[np.arange(len(scores)), chosen]
    return models, Division(chosen, prices, float(np.average(own, weights=sizes)))
