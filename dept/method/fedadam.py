"""FedAdam, the adaptive server optimizer of federated learning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dept.errors import ConfigError, is_number, shown


class FedAdam(Optimizer):
    """FedAdam of Reddi et al. 2021, "Adaptive federated optimization", Algorithm 2.

    ``delta`` is the average of the updates, so here it is minus the gradient::

        m = b1 * m + (1 - b1) * delta           m starts at 0
        v = b2 * v + (1 - b2) * delta ** 2      v starts at tau ** 2
        x = x + lr * m / (sqrt(v) + tau)

    It differs from Adam in the initial value of ``v``, and it has no bias correction. The state of
    a parameter is ``m`` and ``v``, with its shape and dtype.

    Args:
        params: parameters or groups of them, as for any optimizer of torch.
        lr: server learning rate, 0 or more.
        betas: ``b1`` and ``b2``, each 0 or more and below 1.
        tau: degree of adaptivity, above 0. The smaller it is, the more equal are the step sizes of
            the elements.

    Raises:
        ConfigError: the value of an option is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.99),
        tau: float = 1e-3,
    ) -> None:
        if not (is_number(lr) and lr >= 0):
            raise ConfigError(f"outer_optimizer.lr is {shown(lr)}: set it to a number of 0 or more")
        pair = isinstance(betas, Sequence) and len(betas) == 2
        if not (pair and all(is_number(beta) and 0 <= beta < 1 for beta in betas)):
            raise ConfigError(
                f"outer_optimizer.betas is {shown(betas)}: set it to two numbers of 0 or more and "
                "below 1"
            )
        if not (is_number(tau) and tau > 0):
            raise ConfigError(f"outer_optimizer.tau is {shown(tau)}: set it to a number above 0")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "tau": tau})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Step every parameter that has a gradient.

        Args:
            closure: computes the gradients and returns the loss; not needed if gradients exist.

        Returns:
            The loss that ``closure`` returned, or ``None``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["m"] = torch.zeros_like(parameter)
                    state["v"] = torch.full_like(parameter, group["tau"] ** 2)
                state["m"].mul_(b1).add_(gradient, alpha=1 - b1)
                state["v"].mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
                scale = state["v"].sqrt().add_(group["tau"])
                parameter.addcdiv_(state["m"], scale, value=-group["lr"])
        return loss
