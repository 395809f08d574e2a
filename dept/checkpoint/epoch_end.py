"""What is due on the last batch of an epoch waits for its end, and so for the outer step."""

from __future__ import annotations

from collections.abc import Callable

from composer.core import Event, State

Interval = Callable[[State, Event], bool]


def ends_epoch(state: State) -> bool:
    """Whether the batch that was trained last is the last of its epoch, which has not ended yet."""
    return state.timestamp.batch_in_epoch == state.dataloader_len


def after_the_epoch(interval: Interval, of_batch: Event, of_epoch: Event) -> Interval:
    """Let what is due on the last batch of an epoch be due at the end of that epoch.

    The outer step of a round comes with that end, so a checkpoint or an evaluation has it then;
    and there is one of that moment, however often they are made.

    Args:
        interval: of Composer, which is asked at every ``of_batch`` and ``of_epoch``.
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
