"""Local differential privacy of a source: noise is added to its update before anybody sees it.

The pseudo-gradient of a source is clipped to norm C, and each of its numbers gets Gaussian noise of
standard deviation z C. Two updates differ by 2 C at most, whatever the texts that they come from,
so each message is a Gaussian mechanism with noise multiplier z / 2. All messages of a source
together are mu-GDP with ``mu^2 = sum of (2 / z)^2`` (Dong, Roth and Su 2019), also if each depends
on the answers to earlier ones.

The noise must not be known to who receives the message. So it is not drawn from the seed of the
run, which all parties have, but from a secret of the silo, by SHAKE-256: unlike the output of an
ordinary generator, what is seen of it does not give away the rest.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dept.errors import ConfigError, is_number, shown
from dept.method.privacy import epsilon
from dept.method.robust import clipped

WHERE = "algorithms.dept.federation.local_privacy"

_BLOCK = 1 << 19
"""Pairs of numbers that are drawn at once, which bounds the memory."""


@dataclass(frozen=True)
class LocalPrivacy:
    """Options of local differential privacy.

    Attributes:
        clip_update_norm: C, the largest L2 norm of an update.
        noise_multiplier: z, the standard deviation of the noise divided by C.
        delta: the delta for which epsilon is computed.
    """

    clip_update_norm: float
    noise_multiplier: float
    delta: float = 1e-5

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> LocalPrivacy | None:
        """The options of ``algorithms.dept.federation.local_privacy``; ``None`` for none.

        Raises:
            ConfigError: an option is unknown or missing, or a value is out of range.
        """
        if options is None:
            return None
        limits = {"clip_update_norm": (0, 1e6), "noise_multiplier": (0, 1e6), "delta": (0, 1)}
        for key, value in options.items():
            if key not in limits:
                raise ConfigError(f"{WHERE} has no option {shown(key)}: it has {', '.join(limits)}")
            least, most = limits[key]
            if not (is_number(value) and least < value < most):
                raise ConfigError(
                    f"{WHERE}.{key} is {shown(value)}: set it between {least} and {most:g}"
                )
        for key in ("clip_update_norm", "noise_multiplier"):
            if key not in options:
                raise ConfigError(f"{WHERE} lacks {key}: add it, such as 1.0")
        return cls(**options)


def epsilon_of(multipliers: Sequence[float], delta: float) -> float:
    """The least epsilon for which messages are together (epsilon, delta)-private.

    Args:
        multipliers: the noise multiplier z of each message.
        delta: between 0 and 1.
    """
    if not multipliers:
        return 0.0
    mu = 2 * math.sqrt(math.fsum(z**-2 for z in multipliers))
    return epsilon(1 / mu, 1, delta)


@torch.no_grad()
def noisy(
    update: Mapping[str, Tensor], privacy: LocalPrivacy, secret: bytes, *of: str | int
) -> dict[str, Tensor]:
    """Clip an update, and add noise that nobody without the secret can remove.

    The noise depends on the secret, on ``of``, and on the clipped update. So the same update has
    the same noise whenever it is sent again, which gives nothing away, and two different updates
    never share their noise, which their difference would be free of.

    Args:
        update: the pseudo-gradient of a source by name, float32.
        privacy: the options.
        secret: random bytes that only the silo has.
        of: what the noise is for: the source and the round.

    Returns:
        The noisy update by name, on the devices of ``update``.
    """
    limited = clipped(update, privacy.clip_update_norm)
    content = hashlib.sha256()
    for name in sorted(limited):
        content.update(f"{name} {tuple(limited[name].shape)}\n".encode())
        content.update(limited[name].contiguous().cpu().numpy().tobytes())
    purpose = json.dumps(of).encode() + content.digest()
    key = hmac.digest(secret, purpose, "sha256")
    deviation = privacy.noise_multiplier * privacy.clip_update_norm
    found = {}
    for name, value in limited.items():
        noise = torch.from_numpy(normal_numbers(key, name, value.numel())).view(value.shape)
        total = value.double() + (noise * deviation).to(value.device)
        found[name] = total.to(value.dtype)
    return found


def normal_numbers(key: bytes, name: str, count: int) -> np.ndarray:
    """Standard normal numbers, float64[count], by SHAKE-256 and the method of Box and Muller.

    Args:
        key: secret bytes.
        name: which numbers; others are independent of them.
        count: how many.
    """
    pairs = (count + 1) // 2
    drawn = np.empty(2 * pairs)
    for first in range(0, pairs, _BLOCK):
        size = min(_BLOCK, pairs - first)
        stream = hashlib.shake_256(key + json.dumps([name, first]).encode())
        bits = np.frombuffer(stream.digest(16 * size), "<u8").reshape(2, size) >> np.uint64(11)
        radius = np.sqrt(-2 * np.log((bits[0] + 1) * 2.0**-53))  # of (0, 1], so it is finite
        angle = bits[1] * (2 * np.pi * 2.0**-53)
        drawn[2 * first : 2 * first + size] = radius * np.cos(angle)
        drawn[2 * first + size : 2 * (first + size)] = radius * np.sin(angle)
    return drawn[:count]
