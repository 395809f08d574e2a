"""Move what is due on the last batch of an epoch to the epoch's end, after the outer step."""

from __future__ import annotations

from collections.abc import Callable

from composer.core import Event, State

Interval = Callable[[State, Event], bool]


def ends_epoch(state: State) -> bool:
    """Whether the last trained batch is the last of its epoch, and the epoch has not ended yet."""
    return state.timestamp.batch_in_epoch == state.dataloader_len


def after_the_epoch(interval: Interval, of_batch: Event, of_epoch: Event) -> Interval:
    """Delay what is due on the last batch of an epoch to the end of that epoch.

    The outer step of a round happens at the end of the epoch, so a checkpoint or an evaluation then
    includes it. It is made only once at that time, whatever its interval.

    Args:
        interval: interval of Composer, which is called at every ``of_batch`` and ``of_epoch``.
        of_batch: the event at which it may be due after a batch.
        of_epoch: the event at which it may be due after an epoch.
    """
    waits = False

    def due(state: State, event: Event) -> bool:
        nonlocal waits
        is_due = interval(state, event)
        if event == of_batch and ends_epoch(state):
            waits = is_due
            return False
        if event == of_epoch:
            is_due, waits = is_due or waits, False
        return is_due

    return due
