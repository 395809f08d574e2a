"""Flower's SuperNode, which is started again when it ends.

`python -m dept.transport.flower.supernode OPTIONS` takes the options of `flower-supernode`.

It connects again by itself when the server was away, and waits while the server refuses its key. It
ends when it is killed, or has lost a message. Then this command starts it again. With
`--max-retries` or `--max-wait-time` the command ends with the SuperNode, and with its status.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from flwr.supernode.cli.flower_supernode import _parse_supernode_lifespan_config

from dept.log import log

PROCESS = "dept.transport.flower.supernode_process"

PAUSE = 5.0
"""Seconds between the end of a SuperNode and the start of the next one."""


def keep_running(command: Sequence[str], pause: float = PAUSE, *, once: bool = False) -> int:
    """Run a command, and run it again whenever it ends.

    The command can read its input until this process ends.

    Args:
        command: program and arguments.
        pause: seconds between its end and its next start.
        once: do not run it again.

    Returns:
        The status of the command, if it runs once.

    Raises:
        SystemExit: this process was asked to end, as by SIGTERM; so is the command.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    while True:
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            try:
                status = process.wait()
            finally:
                if process.poll() is None:
                    _end(process)
        if once:
            return status
        log.warning(f"the SuperNode has ended with status {status}: another is started")
        time.sleep(pause)


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(0)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10.0)
    except subprocess.TimeoutExpired:
        process.kill()


def main() -> int:
    """Keep a SuperNode running; returns its status if the options say how often it may try."""
    config = _parse_supernode_lifespan_config()  # ends this process if an option is wrong
    once = config.max_retries is not None or config.max_wait_time is not None
    return keep_running([sys.executable, "-m", PROCESS, *sys.argv[1:]], once=once)


if __name__ == "__main__":
    sys.exit(main())
