"""Flower's SuperExec, the process that starts apps for a SuperLink or a SuperNode."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import psutil

from dept.log import log


def watch(end: Callable[[int], object], every: float = 2.0) -> None:
    """End this process when the SuperExec that it has started has died.

    Flower does not notice that, and no app would ever start again.

    Args:
        end: ends this process with a status.
        every: seconds between two looks.
    """
    threading.Thread(target=_watch, args=(end, every), daemon=True).start()


def _watch(end: Callable[[int], object], every: float) -> None:
    while not _lives():
        time.sleep(every)
    while _lives():
        time.sleep(every)
    log.error("the SuperExec, which starts apps, has died: this process ends, start it again")
    end(1)


def _lives() -> bool:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                return True
    return False
