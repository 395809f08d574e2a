"""The pool of worker processes: what is left of it when it closes."""

import multiprocessing
import threading

import pytest
from rich.console import Console

from dept.data_prep.pool import Task, Workers


def _halve(task: Task, number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


@pytest.mark.parametrize("number", [4, 5])
def test_nothing_of_a_pool_is_left_to_the_exit_of_the_interpreter(number):
    before = {*threading.enumerate(), *multiprocessing.active_children()}
    with Workers(2, Console(quiet=True)) as workers:
        if number == 4:
            assert workers.run("halves", _halve, [(number,)], total=None) == [2]
        else:
            with pytest.raises(ValueError, match="5 is odd"):
                workers.run("halves", _halve, [(number,)], total=None)
    assert {*threading.enumerate(), *multiprocessing.active_children()} <= before
