"""Memory of a worker: the model, its inner optimizer, and the additional state of DEPT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dept.errors import ConfigError
from dept.method.presets import PRESETS

WORD = 4  # bytes of float32, in which weights, gradients and optimizer states are kept

# Numbers that an optimizer keeps for each parameter, and additional ones for some options.
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
    """Bytes of one worker. Activations and the memory of libraries are not counted.

    Attributes:
        weights: weights of the model that it trains.
        gradients: gradients of the weights.
        inner_state: state of the inner optimizer.
        start: the global parameters at the start of the round.
        sums: sums of the local models of the slots before the last one of the round: of one in
            float32, of several in float64. (The last one is added when its slot has ended, and
            the state of its optimizer has been moved.) If updates are gathered, these as messages
            and decoded; the first worker has those of all sources of a round.
        outer_state: state of the outer optimizer. Its state per token row in TRIM, such as a step
            count, is not counted, since it is small compared with a row of the embedding.
        kept_per_source: state of a source on the CPU between its slots: its private embedding, and
            the inner state of that, or of the whole model with ``keep`` or ``average``.
        finished: local models of the slots before the last one of the round, on the CPU until the
            round ends, for checkpoints in mid-round.
        averaged_state: averages of the inner state on the CPU, with ``inner_state: average``.
    """

    weights: int
    gradients: int
    inner_state: int
    start: int = 0
    sums: int = 0
    outer_state: int = 0
    kept_per_source: int = 0
    finished: int = 0
    averaged_state: int = 0

    @property
    def training(self) -> int:
        """Bytes for training such a model with any method."""
        return self.weights + self.gradients + self.inner_state

    @property
    def dept(self) -> int:
        """Additional bytes of DEPT, without the state of each source on the CPU."""
        return self.start + self.sums + self.outer_state


def training_memory(parameters: float, optimizer: Mapping[str, Any], **more: float) -> Memory:
    """The memory of a worker.

    Args:
        parameters: parameters of the model that it trains.
        optimizer: the section ``optimizer`` of the yaml.
        more: additional bytes of DEPT, see :func:`dept_memory`.

    Raises:
        ConfigError: the size of the optimizer's state is unknown.
    """
    weights = WORD * parameters
    sizes = {"weights": weights, "gradients": weights}
    sizes |= {"inner_state": weights * state_numbers("optimizer", optimizer), **more}
    return Memory(**{name: round(value) for name, value in sizes.items()})


def dept_memory(
    *,
    shared: float,
    private: float,
    local: float,
    slots: int,
    optimizer: Mapping[str, Any],
    outer_optimizer: Mapping[str, Any],
    inner_state: str,
) -> dict[str, float]:
    """Additional bytes of DEPT, by the names of :class:`Memory`.

    Args:
        shared: number of global parameters; for TRIM with all tokens.
        private: number of private parameters of a source.
        local: number of parameters of the model that a worker trains.
        slots: sources that it trains in a round, one after another.
        optimizer: the section ``optimizer`` of the yaml.
        outer_optimizer: the section ``algorithms.dept.outer_optimizer``.
        inner_state: ``reset``, ``keep`` or ``average``, for that of shared parameters.
    """
    inner = state_numbers("optimizer", optimizer)
    outer = dict(outer_optimizer)
    name = outer.pop("name")
    outer = {**PRESETS.get(name, {"name": name}), **outer}
    return {
        "start": WORD * shared,
        "sums": WORD * shared * min(slots - 1, 2),
        "outer_state": WORD * shared * state_numbers("algorithms.dept.outer_optimizer", outer),
        "kept_per_source": WORD
        * (private + inner * (private if inner_state == "reset" else local)),
        "finished": WORD * local * (slots - 1),
        "averaged_state": WORD * inner * shared if inner_state == "average" else 0,
    }


def state_numbers(section: str, options: Mapping[str, Any]) -> int:
    """Numbers that an optimizer keeps for each parameter.

    Args:
        section: name of the section of the yaml, for the error.
        options: ``name`` of the optimizer and its options.

    Raises:
        ConfigError: the optimizer is not in the table.
    """
    if options.get("name") not in STATE:
        raise ConfigError(
            f"{section}.name is {options.get('name')!r}, whose state has an unknown size: compute "
            f"the costs with one of {', '.join(STATE)}"
        )
    always, by_option = STATE[options["name"]]
    return always + sum(bool(options.get(option)) for option in by_option)
