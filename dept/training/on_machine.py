"""Take the device of this process, and choose what a yaml leaves to the machine."""

from __future__ import annotations

import os
from typing import Any

from dept.config import machine_choices
from dept.config.options import options_of
from dept.transport import cpu, devices
from dept.transport.topology import Place


def choose(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Take the GPU of this process, and put what the yaml leaves to the machine into ``config``.

    It must run before anything else starts CUDA, and before the workers join.

    Args:
        config: the yaml, resolved and checked; changed in place.

    Returns:
        The chosen values by dotted key, and one line about them.

    Raises:
        ConfigError: there are too few GPUs.
    """
    dept, _ = options_of(config)
    place = Place.of(os.environ, 1 if dept is None else dept.ranks_per_worker)
    if dept is None:
        devices.take_own(place.local_rank, place.local_world)
    else:
        devices.confine(place)
    devices.use_threads(place.local_world)
    cpu.prepare()
    device = devices.device()
    chosen = machine_choices.choices(config, device) if "model" in config else {}
    return chosen, machine_choices.line(machine_choices.put(config, chosen), device)
