"""The learning rate over rounds: schedules run in sequential steps, for any number of slots."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from composer.core import State, Time, Timestamp, TimeUnit
from composer.optim import ComposerScheduler
from llmfoundry.utils.builders import build_scheduler


class SequentialStepsScheduler(ComposerScheduler):
    """Runs a scheduler of the yaml on sequential steps, (t - 1) N + i.

    A worker that trains ``sources_per_round`` slots of ``local_steps`` batches one after another
    is at batch ``sources_per_round * local_steps`` after a round, but every local model in the
    average has taken ``local_steps`` steps. Schedules and their time strings are therefore in
    sequential steps: ``1ba`` is one local step, and ``1ep`` is one round of ``local_steps``.

    Args:
        scheduler: an ordinary llm-foundry scheduler, ``{name: cosine_with_warmup, ...}``.
        local_steps: ``N_local``.
    """

    def __init__(self, scheduler: dict[str, Any], local_steps: int) -> None:
        options = dict(scheduler)
        self.scheduler = build_scheduler(options.pop("name"), options)
        self.local_steps = local_steps

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        assert state.max_duration is not None
        # Composer calls this before it counts the batch just trained, for the rate of the next one,
        # and so gives step n the rate of step n - 1. Local steps do the same, so that they equal
        # plain training, and all slots of a round are equal.
        step = max(coming_step(state) - 1, 0)
        round_index, step_in_round = divmod(step, self.local_steps)
        batches = max(state.timestamp.batch.value, 1)
        now = Timestamp(
            epoch=round_index,
            batch=step,
            batch_in_epoch=step_in_round,
            sample=state.timestamp.sample.value * step // batches,
            token=state.timestamp.token.value * step // batches,
        )
        return factor_at(self.scheduler, state, now, self.local_steps, state.max_duration, ssr)


def coming_step(state: State) -> int:
    """The sequential step, from 0, of the next batch; 0 before the first round."""
    run = next((a.run for a in state.algorithms if getattr(a, "run", None) is not None), None)
    return 0 if run is None else run.coming_step


def factor_at(
    scheduler: ComposerScheduler,
    state: State,
    now: Timestamp,
    epoch: int,
    duration: Time,
    ssr: float = 1.0,
) -> float:
    """The factor of a scheduler at another time than that of training.

    Args:
        scheduler: any scheduler of Composer.
        state: state of the trainer; its clock is not used.
        now: the time to evaluate the schedule at.
        epoch: batches in an epoch of that time.
        duration: duration of training on that clock.
        ssr: Composer's scale of the schedule.

    Returns:
        The factor of the learning rate.
    """
    other = SimpleNamespace(
        timestamp=now,
        max_duration=duration,
        dataloader_len=Time(epoch, TimeUnit.BATCH),
        seed=state.rank_zero_seed,
        device_train_microbatch_size=state.device_train_microbatch_size,
    )
    return scheduler(other, ssr)  # type: ignore[arg-type]
