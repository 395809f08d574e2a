"""Ending with the launcher: one killed by SIGKILL ends none of the processes that it started."""

from __future__ import annotations

import os
import signal
import threading
import time

GRACE = 30.0
"""Seconds between SIGTERM, at which Composer ends in order, and the end: as of its launcher."""


def end_with_launcher(poll: float = 1.0, grace: float = GRACE) -> None:
    """Watch over the launcher that started this process, if one did, and end when it is gone.

    Args:
        poll: seconds between two looks.
        grace: seconds to end in order, before this process is ended where it stands.
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
