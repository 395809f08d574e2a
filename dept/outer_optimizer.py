"""The outer step: what the average of the local models does to the global one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dept.faults import NumericalFault, not_finite, not_finite_state
from dept.fedadam import FedAdam
from dept.options import PRESETS, ConfigError, shown
from dept.reduction import Average

TORCH_OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, Optimizer) and cls is not Optimizer
}
OUTER_OPTIMIZERS: dict[str, type[Optimizer]] = {**TORCH_OPTIMIZERS, "fedadam": FedAdam}


class OuterOptimizer:
    """Applies an optimizer to pseudo-gradients, ``start - average``, by parameter name.

    The sign makes descent go towards the average: SGD with learning rate 1 and no momentum lands
    on it. State is kept by name, so that it outlives any ``torch.nn.Parameter``.

    Args:
        name: ``fedavg``, ``nesterov``, ``fedadam``, or any optimizer of ``torch.optim`` in lower
            case (``sgd``, ``adam``, ``adamw``, ``adagrad``, ...).
        classes: optimizers by name; ``fedadam`` and those of ``torch.optim`` by default.
        options: options of the optimizer (``lr``, ``momentum``, ...), over those of a preset.

    Raises:
        ValueError: there is no optimizer of that name, or it does not know an option.
    """

    def __init__(
        self,
        name: str = "fedavg",
        classes: Mapping[str, Callable[..., Optimizer]] | None = None,
        **options: Any,
    ) -> None:
        classes = OUTER_OPTIMIZERS if classes is None else classes
        settings = {**PRESETS.get(name, {"name": name}), **options}
        self.is_average = settings == PRESETS["fedavg"]
        cls = settings.pop("name")
        if cls not in classes:
            known = ", ".join(dict.fromkeys([*PRESETS, *sorted(classes)]))
            raise ConfigError(f"outer_optimizer.name is {shown(name)}: set it to one of {known}")
        self.name = name
        self._build = lambda parameter: classes[cls]([parameter], **settings)
        try:
            self._build(torch.nn.Parameter(torch.zeros(1)))
        except TypeError as error:
            raise ConfigError(
                f"outer_optimizer {name!r} has an option it does not know: {error}"
            ) from error
        self.state: dict[str, dict[str, Any]] = {}

    @torch.no_grad()
    def step(
        self, start: Mapping[str, Tensor], averages: Mapping[str, Average]
    ) -> dict[str, Tensor]:
        """The global parameters after the round, for each parameter that has an average.

        Args:
            start: global parameters that the round started from, by name.
            averages: what the reduction gave, by name. In a parameter averaged by token row, a
                row without a holder keeps its value and its state.

        Raises:
            NumericalFault: an average, a value or a state is not finite; nothing is changed then.
        """
        stepped: dict[str, Tensor] = {}
        states: dict[str, dict[str, Any]] = {}
        for name, average in averages.items():
            stepped[name], states[name] = self._step_one(name, start[name], average)
        for what, broken in (
            ("the average of", not_finite({n: a.value for n, a in averages.items()})),
            ("the new", not_finite(stepped)),
            ("the outer optimizer's", not_finite_state(states)),
        ):
            if broken is not None:
                raise NumericalFault(
                    f"{what} {broken} is not finite, and the global model stays as it was: lower "
                    f"algorithms.dept.outer_optimizer.lr, or optimizer.lr"
                )
        self.state |= {name: state for name, state in states.items() if state}
        return stepped

    def _step_one(
        self, name: str, start: Tensor, average: Average
    ) -> tuple[Tensor, dict[str, Any]]:
        """The value and the optimizer's state after the step."""
        if self.is_average:
            return average.value, {}  # start - 1.0 * (start - average), without its rounding
        parameter = torch.nn.Parameter(start.clone())
        parameter.grad = start - average.value
        optimizer = self._build(parameter)
        before = self.state.get(name, {})
        if before:  # else leave what the optimizer itself starts from
            optimizer.state[parameter] = {
                key: value.clone() if isinstance(value, Tensor) else value
                for key, value in before.items()
            }
        optimizer.step()
        after = dict(optimizer.state[parameter])
        if average.held is not None:
            held = average.held.reshape(-1, *[1] * (start.dim() - 1))
            parameter.data = torch.where(held, parameter.data, start)
            for key, value in after.items():
                if isinstance(value, Tensor) and value.shape == start.shape and key in before:
                    after[key] = torch.where(held, value, before[key])
        return parameter.data, after

    def state_dict(self) -> dict[str, Any]:
        """Name of the optimizer and its state by parameter name."""
        return {"name": self.name, "state": self.state}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Restore what ``state_dict`` gave, onto ``device``.

        Raises:
            ValueError: it is the state of another optimizer.
        """
        if state["name"] != self.name:
            raise ValueError(
                f"the checkpoint's outer optimizer is {state['name']!r}, the yaml's is "
                f"{self.name!r}: set algorithms.dept.outer_optimizer.name to {state['name']!r}"
            )
        self.state = {
            name: {
                k: v.to(device) if isinstance(v, Tensor) and v.dim() else v
                for k, v in entry.items()
            }
            for name, entry in state["state"].items()
        }
