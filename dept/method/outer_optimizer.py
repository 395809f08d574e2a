"""The outer step: how the average of the local models updates the global one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dept.errors import ConfigError, NumericalFault, shown
from dept.method.averaging import Average
from dept.method.faults import not_finite, not_finite_state
from dept.method.fedadam import FedAdam
from dept.method.presets import PRESETS
from dept.method.row_steps import step_rows

TORCH_OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, Optimizer) and cls is not Optimizer
}
OUTER_OPTIMIZERS: dict[str, type[Optimizer]] = {**TORCH_OPTIMIZERS, "fedadam": FedAdam}

FORMAT = 2
"""Format of the state in a checkpoint. Before 2, ``fedadam`` was Adam and steps were not by row."""


class OuterOptimizer:
    """Applies an optimizer to pseudo-gradients, ``start - average``, by parameter name.

    With this sign, descent moves towards the average: SGD with learning rate 1 and no momentum
    gives the average itself (Algorithm 1, line 8). State is kept by name, so that it outlives any
    ``torch.nn.Parameter``. In a parameter averaged by token row, each row is stepped, and its steps
    are counted, only in the rounds in which some source holds it (``dept/method/row_steps.py``).

    Args:
        name: ``fedavg``, ``nesterov``, ``fedadam``, or any of ``classes``.
        classes: optimizers by name; by default ``fedadam`` and those of ``torch.optim`` in lower
            case (``sgd``, ``adam``, ``adamw``, ``adagrad``, ...). Training adds those of
            llm-foundry's registry (``dept/training/registered.py``).
        options: options of the optimizer (``lr``, ``momentum``, ...), which override a preset.

    Raises:
        ConfigError: there is no optimizer of that name, or it does not take an option.
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
            raise ConfigError(
                f"algorithms.dept.outer_optimizer.name is {shown(name)}: set it to one of "
                f"{', '.join(dict.fromkeys([*PRESETS, *sorted(classes)]))}"
            )
        self.name = name
        self._build = lambda parameter: classes[cls]([parameter], **settings)
        try:
            # The average needs no optimizer, whose first use imports torch's compiler for seconds.
            if not self.is_average:
                self._build(torch.nn.Parameter(torch.zeros(1)))
        except ConfigError:
            raise
        except Exception as error:  # of any library
            raise ConfigError(
                f"algorithms.dept.outer_optimizer cannot be built as {shown(name)}: {error}"
            ) from error
        self.state: dict[str, dict[str, Any]] = {}

    @torch.no_grad()
    def step(
        self, start: Mapping[str, Tensor], averages: Mapping[str, Average]
    ) -> dict[str, Tensor]:
        """Take the outer step for each parameter that has an average.

        Args:
            start: global parameters at the start of the round, by name.
            averages: averages of the local models, by name. In a parameter averaged by token row, a
                row without a holder keeps its value and its state.

        Returns:
            The global parameters after the round, by name.

        Raises:
            NumericalFault: an average, a value or a state is not finite; nothing is changed then.
        """
        stepped: dict[str, Tensor] = {}
        states: dict[str, dict[str, Any]] = {}
        for name, average in averages.items():
            stepped[name], states[name] = self._step_one(name, start[name], average)
        for what, broken in (
            ("the average of", not_finite({n: a.value for n, a in averages.items()})),
            ("the new", None if self.is_average else not_finite(stepped)),
            ("the outer optimizer's", not_finite_state(states)),
        ):
            if broken is not None:
                raise NumericalFault(
                    f"{what} {broken} is not finite, and the global model is unchanged: lower "
                    f"algorithms.dept.outer_optimizer.lr, or optimizer.lr"
                )
        self.state |= {name: state for name, state in states.items() if state}
        return stepped

    def _step_one(
        self, name: str, start: Tensor, average: Average
    ) -> tuple[Tensor, dict[str, Any]]:
        """The value and the optimizer's state after the step."""
        if self.is_average:
            return average.value, {}  # start - 1.0 * (start - average), without the rounding error
        gradient, before = start - average.value, self.state.get(name, {})
        if average.held is None:
            state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in before.items()}
            return self._stepped(start.clone(), gradient, state)
        return step_rows(self._stepped, start, gradient, average.held, before)

    def _stepped(
        self, value: Tensor, gradient: Tensor, state: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Step a parameter in place; returns its value and the optimizer's state."""
        parameter = torch.nn.Parameter(value)
        parameter.grad = gradient
        optimizer = self._build(parameter)
        if state:  # otherwise the optimizer makes its own initial state
            optimizer.state[parameter] = state
        optimizer.step()
        return parameter.data, dict(optimizer.state[parameter])

    def check_step(self) -> None:
        """Refuse an optimizer that cannot take a step with its options; its state is unchanged.

        Raises:
            ConfigError: a value does not fit, or the optimizer needs more than gradients.
        """
        if self.is_average:
            return
        try:
            value, _ = self._stepped(torch.ones(2, 2), torch.ones(2, 2), {})
            if not value.isfinite().all():
                raise NumericalFault(f"it leads from 1 to {value[0, 0].item()}")
        except Exception as error:  # of any library
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"algorithms.dept.outer_optimizer cannot take a step: {reason}"
            ) from error

    def check_by_row(self) -> None:
        """Refuse an optimizer that cannot step each row of a matrix separately.

        Raises:
            ConfigError: it keeps state that is neither by element nor a scalar.
        """
        shape = (3, 2)
        _, state = self._stepped(torch.ones(shape), torch.ones(shape), {})
        for key, entry in state.items():
            if not (isinstance(entry, Tensor) and entry.shape in (shape, ())):
                raise ConfigError(
                    f"outer_optimizer.name is {shown(self.name)}, whose state {key} is not by "
                    "element, but the variant averages the token embedding row by row: set it to "
                    "another, such as adam or nesterov"
                )

    def state_dict(self) -> dict[str, Any]:
        """Name of the optimizer, its state by parameter name, and the format of the state."""
        return {"name": self.name, "format": FORMAT, "state": self.state}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Restore a ``state_dict``, on ``device``.

        Raises:
            ValueError: it is the state of another optimizer, or of an earlier format.
        """
        if state["name"] != self.name:
            raise ValueError(
                f"the checkpoint's outer optimizer is {state['name']!r}, the yaml's is "
                f"{self.name!r}: set algorithms.dept.outer_optimizer.name to {state['name']!r}"
            )
        if state["state"] and state.get("format") != FORMAT:
            raise ValueError(
                "the checkpoint's outer optimizer state is of an earlier version of this "
                "repository, which counted steps in another way: choose another run_name"
            )
        self.state = {
            name: {
                k: v.to(device) if isinstance(v, Tensor) and v.dim() else v
                for k, v in entry.items()
            }
            for name, entry in state["state"].items()
        }
