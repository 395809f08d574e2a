"""Central differential privacy of the average: Gaussian noise, and the guarantee that it gives.

Each update is clipped to norm C. The sum over a round gets noise of standard deviation z C in every
coordinate, where z is the noise multiplier, and is divided by the number of sources that were drawn
(McMahan et al. 2018). Two runs are neighbours if all updates of one source are replaced by zero.

Sampling is not taken to amplify privacy, since the draws follow from the seed and are logged. So a
source loses privacy in the rounds that draw it, and in no other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dept.errors import ConfigError, is_number, shown

WHERE = "algorithms.dept.privacy"


@dataclass(frozen=True)
class Privacy:
    """Options of differential privacy.

    Attributes:
        noise_multiplier: z, the standard deviation of the noise of a round's sum, divided by the
            norm that updates are clipped to.
        delta: the delta for which epsilon is computed.
    """

    noise_multiplier: float
    delta: float = 1e-5

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> Privacy | None:
        """The options of ``algorithms.dept.privacy``; ``None`` for none.

        Raises:
            ConfigError: an option is unknown or missing, or a value is out of range.
        """
        if options is None:
            return None
        limits = {"noise_multiplier": (0, 1e6), "delta": (0, 1)}
        for key, value in options.items():
            if key not in limits:
                raise ConfigError(
                    f"{WHERE} has no option {shown(key)}: it has {' and '.join(limits)}"
                )
            least, most = limits[key]
            if not (is_number(value) and least < value < most):
                raise ConfigError(
                    f"{WHERE}.{key} is {shown(value)}: set it between {least} and {most:g}"
                )
        if "noise_multiplier" not in options:
            raise ConfigError(f"{WHERE} lacks noise_multiplier: add it, such as 1.0")
        return cls(**options)

    def epsilon(self, rounds: int) -> float:
        """The epsilon of a source that was drawn for so many rounds."""
        return epsilon(self.noise_multiplier, rounds, self.delta)


def epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """The least epsilon for which ``rounds`` Gaussian mechanisms are (epsilon, delta)-private.

    Together they are mu-GDP with ``mu = sqrt(rounds) / noise_multiplier`` (Dong, Roth and Su 2019,
    Corollary 2), which is exact, and no larger than the bound by Renyi divergences (Mironov 2017).

    Args:
        noise_multiplier: standard deviation of the noise divided by the sensitivity.
        rounds: number of mechanisms, each of which may depend on the results of earlier ones.
        delta: between 0 and 1.
    """
    if rounds == 0 or delta_of(0.0, noise_multiplier, rounds) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of(high, noise_multiplier, rounds) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if delta_of(middle, noise_multiplier, rounds) > delta:
            low = middle
        else:
            high = middle
    return high


def delta_of(epsilon: float, noise_multiplier: float, rounds: int) -> float:
    """The least delta for an epsilon (Balle and Wang 2018, Theorem 8; Dong et al. 2019).

    Args:
        epsilon: 0 or above.
        noise_multiplier: standard deviation of the noise divided by the sensitivity.
        rounds: number of Gaussian mechanisms, at least one.
    """
    mu = math.sqrt(rounds) / noise_multiplier
    tail = _log_tail(epsilon / mu + mu / 2)
    return max(0.0, math.exp(_log_tail(epsilon / mu - mu / 2)) - math.exp(epsilon + tail))


def _log_tail(x: float) -> float:
    """Log of the probability that a standard normal variable exceeds x; a lower bound far out."""
    if x < 30:
        return math.log(math.erfc(x / math.sqrt(2)) / 2)
    return -x * x / 2 + math.log((1 / x - 1 / x**3) / math.sqrt(2 * math.pi))


@torch.no_grad()
def noisy_mean(
    updates: list[Mapping[str, Tensor]],
    start: Mapping[str, Tensor],
    *,
    drawn: int,
    deviation: float,
    seed: int,
) -> dict[str, Tensor]:
    """The sum of updates, with noise, divided by a number that does not depend on them.

    Args:
        updates: clipped pseudo-gradients by name; fewer than ``drawn`` if some were left out.
        start: the global parameters by name, for shapes, dtypes and devices.
        drawn: how many sources were drawn.
        deviation: standard deviation of the noise of each coordinate of the sum.
        seed: seed of the noise; the same noise on every device.

    Returns:
        The mean by name.
    """
    generator = torch.Generator().manual_seed(seed)
    means = {}
    for name in sorted(start):
        like = start[name]
        total = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        total = (total * deviation).to(like.device)
        for update in updates:
            total += update[name].double()
        means[name] = (total / drawn).to(like.dtype)
    return means
