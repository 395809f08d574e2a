"""End with the launcher: a launcher killed by SIGKILL does not end the processes it started."""

from __future__ import annotations

import os
import signal
import threading
import time

GRACE = 30.0
"""Seconds from SIGTERM, which starts an orderly end, to the hard exit: as Composer's launcher."""


def end_with_launcher(poll: float = 1.0, grace: float = GRACE) -> None:
    """Watch the launcher that started this process, if there is one, and exit when it is gone.

    Args:
        poll: seconds between two checks.
        grace: seconds for an orderly end, before this process exits at once.
    """
    if "LOCAL_RANK" in os.environ:
        launcher = os.getppid()
        threading.Thread(target=_watch, args=(launcher, poll, grace), daemon=True).start()


def _watch(launcher: int, poll: float, grace: float) -> None:
    while os.getppid() == launcher:
        time.sleep(poll)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(128 + signal.SIGTERM)
