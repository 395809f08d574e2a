"""Parameters that stay as they are while training begins, such as a body beside a new embedding."""

from __future__ import annotations

import re
from collections.abc import Sequence

from composer.core import Callback, State, Time
from composer.loggers import Logger


class FrozenStart(Callback):
    """Takes the gradients of some parameters away until a part of the training is over.

    They are computed all the same, as the processes of a job expect; they do not count when
    gradients are clipped. Weight decay does not change the parameters either.

    Args:
        names: regular expressions; a parameter is frozen if one of them is found in its name.
        until: when they begin to be trained, in Composer's notation: ``20ba``, ``1ep``.
    """

    def __init__(self, names: Sequence[str], until: str) -> None:
        self.names, self.until = [re.compile(name) for name in names], Time.from_input(until)

    def fit_start(self, state: State, logger: Logger) -> None:
        every = dict(state.model.named_parameters())
        if not any(self._is_frozen(name) for name in every):
            written = [name.pattern for name in self.names]
            raise ValueError(
                f"callbacks.frozen_start.names finds no parameter with {written}: there are "
                f"{', '.join(list(every)[:3])}, ..."
            )

    def after_backward(self, state: State, logger: Logger) -> None:
        if state.timestamp.get(self.until.unit) >= self.until:
            return
        for name, parameter in state.model.named_parameters():
            if self._is_frozen(name):
                parameter.grad = None
                # The optimizer passes over it, but a checkpoint needs an entry, if an empty one.
                state.optimizers[0].state.setdefault(parameter, {})

    def _is_frozen(self, name: str) -> bool:
        return any(pattern.search(name) for pattern in self.names)
