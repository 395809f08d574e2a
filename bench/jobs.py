"""Jobs of `train.py` that can be killed: by the real launcher, or forked, which start at once.

A forked job is of processes whose imports are done, in place of composer's launcher; they die as
any other.
"""

import atexit
import contextlib
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

FORKED = (
    "SIGKILL to a rank",
    "SIGKILL to the launcher",
    "SIGTERM to all",
    "SIGKILL in a save",
)
LAUNCHED = (*FORKED, "SIGTERM to the launcher")
IMPORTS = [
    "dept.training.command",
    "dept.training.registration",
    "llmfoundry.command_utils",
]


class Job:
    """A launcher and its ranks."""

    def __init__(self, command: list[str], workers: int) -> None:
        self.command, self.workers = command, workers
        name = next(part for part in command if part.startswith("run_name="))[9:]
        self.log = Path("runs") / f"{name}.log"
        self.log.parent.mkdir(exist_ok=True)

    pid: int
    """Of the launcher."""

    status: int | None
    """That it ended with, or ``None``."""

    def ranks(self) -> list[int]:
        """Processes that train, as far as they are there."""
        raise NotImplementedError

    def wait_until_training(self, folder: Path) -> None:
        """Until the first rank of this start has written a metric, or its end."""
        before = _changed(folder)
        while _changed(folder) == before and self.status is None:
            time.sleep(0.005)

    def wait_until_saving(self, folder: Path) -> None:
        """Until a file is being written, or the end."""
        while self.status is None:
            if next((folder / "checkpoints").rglob(".writing-*"), None) is not None:
                return

    def wait(self) -> int:
        """Let it come to its end; the exit status."""
        while self.status is None:
            time.sleep(0.02)
        return self.status

    def die(self, death: str, draw: random.Random) -> None:
        """Kill it, and wait until nothing is left of it."""
        ranks = self.ranks()
        if death == "SIGTERM to all":
            for pid in [*ranks, *([self.pid] if isinstance(self, LaunchedJob) else [])]:
                _signal(pid, signal.SIGTERM)
        elif death == "SIGTERM to the launcher":
            _signal(self.pid, signal.SIGTERM)
        elif death == "SIGKILL to the launcher" or not ranks:
            _signal(self.pid, signal.SIGKILL)
        elif death == "SIGKILL in a save":
            _signal(ranks[0], signal.SIGKILL)
        else:
            _signal(draw.choice(ranks), signal.SIGKILL)
        self.wait()
        while any(map(_runs, ranks)):
            time.sleep(0.02)


class LaunchedJob(Job):
    """``composer -n W train.py ...``."""

    def __init__(self, command: list[str], workers: int) -> None:
        super().__init__(command, workers)
        composer = Path(sys.executable).with_name("composer")
        with open(self.log, "a") as log:
            self._process = subprocess.Popen(
                [composer, "-n", str(workers), "train.py", *command], stdout=log, stderr=log
            )
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def ranks(self) -> list[int]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.pid).children()]
        return []


class ForkedJob(Job):
    """The same, from a process that has imported everything."""

    def __init__(self, command: list[str], workers: int) -> None:
        super().__init__(command, workers)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTS)
        self._pids = context.Array("i", workers)
        self._process = context.Process(target=_launch, args=(command, self._pids, str(self.log)))
        self._process.start()
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        return self._process.exitcode

    def ranks(self) -> list[int]:
        return [pid for pid in self._pids if pid]


def _launch(command: list[str], pids, log: str) -> None:
    """As composer's launcher: starts ranks, ends all when one dies."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    workers = len(pids)
    for rank in range(workers):
        pid = os.fork()
        if pid == 0:
            place = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0}
            place |= {"WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in place.items()})
            _rank(command)
        pids[rank] = pid
    left, status = set(pids), 0
    while left:
        pid, ended = os.wait()
        left.discard(pid)
        code = os.waitstatus_to_exitcode(ended)
        if code != 0 and status == 0:
            status = abs(code)
            for other in left:
                _signal(other, signal.SIGTERM)
    os._exit(status)


def _rank(command: list[str]) -> None:
    code = 1
    try:
        from dept.training.command import main

        code = main(command)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _changed(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _runs(pid: int) -> bool:
    """Whether a process is there, and not only its entry in the table."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
