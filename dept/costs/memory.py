"""Memory of a worker: the model and its inner optimizer, and what DEPT keeps beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dept.errors import ConfigError
from dept.method.presets import PRESETS

WORD = 4  # bytes of float32, in which weights, gradients and optimizer states are kept

# Numbers that an optimizer keeps for each parameter, and those that an option of it adds.
STATE: dict[str, tuple[int, tuple[str, ...]]] = {
    "adam": (2, ("amsgrad",)),
    "adamw": (2, ("amsgrad",)),
    "decoupled_adamw": (2, ("amsgrad",)),
    "nadam": (2, ()),
    "radam": (2, ()),
    "adamax": (2, ()),
    "adagrad": (1, ()),
    "rmsprop": (1, ("momentum", "centered")),
    "fedadam": (2, ()),
    "sgd": (0, ("momentum",)),
    "decoupled_sgdw": (0, ("momentum",)),
    "decoupled_lionw": (1, ()),
}


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker. Activations are not counted, nor what a library takes for itself.

    Attributes:
        weights: of the model that it trains.
        gradients: of those.
        inner_state: of the inner optimizer.
        start: the global parameters that the round started from.
        sums: of the local models of the round, in float64, if it trains several sources in turn.
            (If it trains one, the local model is copied when its slot is over and its optimizer
            state has gone.)
        outer_state: of the outer optimizer. What it keeps for each token row of TRIM, such as a
            count of steps, is not counted: it is a few bytes beside a row of the embedding.
        kept_per_source: on the CPU, between the slots of a source: its private embedding, and the
            inner state of that, or of the whole model with ``inner_state: keep``; and until the
            round ends its local model, for checkpoints in mid-round, and the private embedding as
            the round found it.
    """

    weights: int
    gradients: int
    inner_state: int
    start: int = 0
    sums: int = 0
    outer_state: int = 0
    kept_per_source: int = 0

    @property
    def training(self) -> int:
        """What training such a model takes by any method."""
        return self.weights + self.gradients + self.inner_state

    @property
    def dept(self) -> int:
        """What DEPT adds to it, beside what it keeps for each source on the CPU."""
        return self.start + self.sums + self.outer_state


def training_memory(parameters: float, optimizer: Mapping[str, Any], **more: float) -> Memory:
    """The memory of a worker.

    Args:
        parameters: of the model that it trains.
        optimizer: the section ``optimizer`` of the yaml.
        more: what DEPT adds, see :func:`dept_memory`.

    Raises:
        ConfigError: it is not known what the optimizer keeps.
    """
    weights = WORD * parameters
    figures = {"weights": weights, "gradients": weights}
    figures |= {"inner_state": weights * state_numbers("optimizer", optimizer), **more}
    return Memory(**{name: round(value) for name, value in figures.items()})


def dept_memory(
    *,
    shared: float,
    private: float,
    local: float,
    slots: int,
    optimizer: Mapping[str, Any],
    outer_optimizer: Mapping[str, Any],
    keep_inner_state: bool,
) -> dict[str, float]:
    """What DEPT adds, in bytes, by the names of :class:`Memory`.

    Args:
        shared: global parameters; for TRIM of all tokens, though a source trains its own.
        private: parameters of a source that are its own.
        local: parameters of the model that a worker trains.
        slots: sources that it trains in a round, one after another.
        optimizer: the section ``optimizer`` of the yaml.
        outer_optimizer: that of ``algorithms.dept``.
        keep_inner_state: whether the inner state of shared parameters is kept, too.
    """
    inner = state_numbers("optimizer", optimizer)
    outer = dict(outer_optimizer)
    name = outer.pop("name")
    outer = {**PRESETS.get(name, {"name": name}), **outer}
    return {
        "start": WORD * shared,
        "sums": 2 * WORD * shared if slots > 1 else 0,
        "outer_state": WORD * shared * state_numbers("algorithms.dept.outer_optimizer", outer),
        "kept_per_source": WORD
        * (local + private + inner * (local if keep_inner_state else private)),
    }


def state_numbers(section: str, options: Mapping[str, Any]) -> int:
    """Numbers that an optimizer keeps for each parameter.

    Raises:
        ConfigError: the optimizer is not in the table.
    """
    if options.get("name") not in STATE:
        raise ConfigError(
            f"{section}.name is {options.get('name')!r}, and it is not known how much that keeps: "
            f"look at the costs with one of {', '.join(STATE)}"
        )
    always, by_option = STATE[options["name"]]
    return always + sum(bool(options.get(option)) for option in by_option)
