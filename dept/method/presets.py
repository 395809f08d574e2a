"""Presets of outer optimizers: a name for an optimizer and its options."""

from __future__ import annotations

from typing import Any

#   fedavg    the average itself (McMahan et al. 2017), the outer optimizer of the paper
#   nesterov  the outer optimizer of DiLoCo (Douillard et al. 2023)
#   fedadam   FedAdam (Reddi et al. 2021, Algorithm 2), in fedadam.py: no bias correction, and tau
#             in the place of eps; adam is torch's Adam on pseudo-gradients
PRESETS: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "sgd", "lr": 1.0},
    "nesterov": {"name": "sgd", "lr": 0.7, "momentum": 0.9, "nesterov": True},
    "fedadam": {"name": "fedadam", "lr": 1e-3, "betas": (0.9, 0.99), "tau": 1e-3},
}
