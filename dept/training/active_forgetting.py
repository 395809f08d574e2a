"""Active forgetting (ACT): a baseline that re-initialises its embedding at fixed intervals."""

from __future__ import annotations

from typing import Any

from composer.core import Callback, State, Time, Timestamp, TimeUnit
from composer.loggers import Logger
from llmfoundry.utils.builders import build_scheduler

from dept.errors import ConfigError
from dept.method.live_model import parameter_roles, random_embedding
from dept.method.streams import seed_of
from dept.method.variants import Role
from dept.training.algorithm import dept_of
from dept.training.learning_rate import factor_at


class ActiveForgetting(Callback):
    """Re-initialises the token embedding at fixed intervals (Chen et al. 2023; ACT in the paper).

    A reset also clears the optimizer's moments of the embedding and restarts its learning-rate
    schedule. The body, its moments and its schedule are not affected.

    The embedding must be a separate optimizer group, so that it can have its own learning rate:
    ``optimizer: {param_groups: [{param_str_match: wte|lm_head}]}``.

    Args:
        every: batches between two resets; there is none after the last batch.
        scheduler: schedule of the embedding's learning rate, an ordinary llm-foundry scheduler; its
            time runs from 0 to ``every`` batches, then restarts.

    Raises:
        ConfigError: ``every`` is not a number of batches.
    """

    def __init__(self, every: int, scheduler: dict[str, Any]) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ConfigError(
                f"callbacks.active_forgetting.every is {every!r}: set it to a whole number of "
                f"batches of 1 or more"
            )
        self.every = every
        options = dict(scheduler)
        self.scheduler = build_scheduler(options.pop("name"), options)

    def init(self, state: State, logger: Logger) -> None:
        if dept_of(state) is not None:
            raise ConfigError("callbacks.active_forgetting is a baseline: remove algorithms.dept")
        self._model = state.model  # before DDP, which renames parameters
        roles = parameter_roles(state.model)
        self._names = [name for name, role in roles.items() if role is Role.TOKENS]

    def fit_start(self, state: State, logger: Logger) -> None:
        wanted = {id(self._model.get_parameter(name)) for name in self._names}
        for group in state.optimizers[0].param_groups:
            if {id(parameter) for parameter in group["params"]} == wanted:
                self._group = group
                return
        raise ConfigError(
            f"optimizer.param_groups has no group of {', '.join(self._names)} alone, which "
            f"callbacks.active_forgetting needs: add {{param_str_match: wte|lm_head}}"
        )

    def batch_start(self, state: State, logger: Logger) -> None:
        cycle, step = divmod(state.timestamp.batch.value, self.every)
        if step == 0 and cycle > 0:
            self._forget(state, cycle)
        self._group["lr"] = self._group["initial_lr"] * self._factor(state, step)

    def _forget(self, state: State, cycle: int) -> None:
        rows = self._model.get_parameter(self._names[0]).shape[0]
        seed = seed_of(state.rank_zero_seed, "forgetting", cycle)
        fresh = random_embedding(self._model, self._names, rows=rows, seed=seed)
        for name, value in fresh.items():
            parameter = self._model.get_parameter(name)
            parameter.data.copy_(value)
            state.optimizers[0].state.pop(parameter, None)

    def _factor(self, state: State, step: int) -> float:
        step = max(step - 1, 0)  # as in Composer, the second batch has the rate of the first
        now = Timestamp(epoch=0, batch=step, batch_in_epoch=step, sample=step, token=step)
        cycle = Time(self.every, TimeUnit.BATCH)
        return factor_at(self.scheduler, state, now, self.every, cycle)
