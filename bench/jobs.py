"""Jobs of `train.py` that can be killed, started by composer's launcher or by a fork.

A forked job starts at once, since its processes have already done their imports. It replaces
composer's launcher.
"""

from __future__ import annotations

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
from multiprocessing.connection import wait
from pathlib import Path

import psutil

IMPORTS = ["dept.training.command", "dept.training.registration", "llmfoundry.command_utils"]


class Job:
    """A launcher and its ranks.

    Args:
        command: arguments of `train.py`.
        workers: number of ranks.
        launcher: whether to start with `composer -n W train.py` instead of a fork.
    """

    def __init__(self, command: list[str], workers: int, launcher: bool = False) -> None:
        name = next(part for part in command if part.startswith("run_name="))[9:]
        self.log = Path("runs") / f"{name}.log"
        self.log.parent.mkdir(exist_ok=True)
        self._launched = launcher
        if launcher:
            composer = Path(sys.executable).with_name("composer")
            with open(self.log, "a") as log:
                self._process = subprocess.Popen(
                    [composer, "-n", str(workers), "train.py", *command], stdout=log, stderr=log
                )
        else:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(IMPORTS)
            arguments = (command, workers, str(self.log))
            self._process = context.Process(target=_launch, args=arguments)
            self._process.start()

    @property
    def status(self) -> int | None:
        """Exit status of the launcher; ``None`` if it is running."""
        return self._process.poll() if self._launched else self._process.exitcode

    def ranks(self) -> list[psutil.Process]:
        """The existing training processes, in the order of ranks."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return sorted(psutil.Process(self._process.pid).children(), key=lambda rank: rank.pid)
        return []

    def wait_until_training(self, folder: Path) -> None:
        """Wait until the first rank of this start has written a metric, or the job has ended."""
        before = _changed(folder)
        while _changed(folder) == before and self.status is None:
            time.sleep(0.005)

    def wait_until_saving(self, folder: Path) -> None:
        """Wait until a file is being written, or the job has ended."""
        while self.status is None:
            if next((folder / "checkpoints").rglob(".writing-*"), None) is not None:
                return

    def wait(self, seconds: float = float("inf")) -> int | None:
        """Wait for the end, at most ``seconds``; returns the exit status."""
        until = time.monotonic() + seconds
        while self.status is None and time.monotonic() < until:
            time.sleep(0.005)
        return self.status

    def die(self, death: str, draw: random.Random) -> None:
        """Kill the job, and wait until all its processes are gone.

        Args:
            death: kind of the kill. Its first word is the name of the signal.
            draw: random generator of the rank to kill.
        """
        ranks, launcher = [rank.pid for rank in self.ranks()], self._process.pid
        if death == "SIGTERM to all":
            killed = [*ranks, launcher] if self._launched else ranks
        elif "launcher" in death or not ranks:
            killed = [launcher]
        else:
            killed = [ranks[0] if death == "SIGKILL in a save" else draw.choice(ranks)]
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.Signals[death.split()[0]])
        self.wait()
        while any(map(_runs, ranks)):
            time.sleep(0.02)


def _launch(command: list[str], workers: int, log: str) -> None:
    """Start ranks, and end all when one dies, as composer's launcher does."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=_rank, args=(command, n, workers, port)) for n in range(workers)
    ]
    for rank in ranks:
        rank.start()
    status = 0
    while left := [rank for rank in ranks if rank.exitcode is None]:
        wait([rank.sentinel for rank in left])
        failed = next((rank.exitcode for rank in ranks if rank.exitcode), 0)
        if failed and not status:
            status = abs(failed)
            for rank in ranks:
                rank.terminate()
    sys.exit(status or max(abs(rank.exitcode) for rank in ranks))


def _rank(command: list[str], rank: int, workers: int, port: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0}
    place |= {"WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    try:
        from dept.training.arguments import main

        sys.exit(main(command))
    finally:
        atexit._run_exitfuncs()  # multiprocessing does not run them


def _runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _changed(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").stat().st_mtime_ns
    except FileNotFoundError:
        return 0
