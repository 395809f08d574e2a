"""Commands of this repository in forked processes, which share one import of their libraries."""

import atexit
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fleet import free_port
from forks import forks

REPOSITORY = Path(__file__).parents[2]
TRAIN = "dept.training.command"
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")


class Commands:
    """Runs the ``main`` of a module as a process of its own would, without paying for its imports.

    Args:
        logs: folder for what commands print.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._context = forks()

    def run(
        self, name: str, module: str, arguments: Sequence[str], processes: int = 1, nodes: int = 1
    ) -> list[str]:
        """Run one command; what it printed is in the error if it fails.

        Args:
            name: of its logs.
            module: whose ``main`` it is.
            arguments: of the command.
            processes: of the job, as ``composer -n`` starts them.
            nodes: that they are said to be on.

        Returns:
            What each process printed.
        """
        members = self._started(name, module, arguments, processes, nodes)
        for member in members:
            member.join()
        printed = [self._log(name, rank).read_text() for rank in range(processes)]
        assert [member.exitcode for member in members] == [0] * processes, printed
        return printed

    def kill(
        self, name: str, module: str, arguments: Sequence[str], signal: int, when: Callable
    ) -> int:
        """Start one command, and send it a signal as soon as ``when()`` is true; its exit status.

        Raises:
            AssertionError: it ended before.
        """
        (member,) = self._started(name, module, arguments)
        while not when():
            assert member.is_alive(), self._log(name).read_text()
            time.sleep(0.01)
        os.kill(member.pid, signal)
        member.join()
        return member.exitcode

    def start(self, name: str, script: str, arguments: Sequence[str]) -> subprocess.Popen:
        """Start ``python script`` as a user does."""
        command = [sys.executable, script, *arguments]
        environment = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
        with open(self._log(name), "w") as log:
            return subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def _log(self, name: str, rank: int = 0) -> Path:
        return self.logs / (f"{name}-{rank}.log" if rank else f"{name}.log")

    def _started(
        self, name: str, module: str, arguments: Sequence[str], processes: int = 1, nodes: int = 1
    ) -> list:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        members, on_node = [], processes // nodes
        for rank in range(processes):
            place = {"RANK": rank, "LOCAL_RANK": rank % on_node, "NODE_RANK": rank // on_node}
            place |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": on_node}
            environment = {key: str(value) for key, value in place.items()} | address
            log = self._log(name, rank)
            job = (module, list(arguments), str(log), environment if processes > 1 else {})
            members.append(self._context.Process(target=_main, args=job))
            members[-1].start()
        return members


def _main(module: str, arguments: list[str], log: str, environment: dict[str, str]) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    for name in LAUNCHED:
        os.environ.pop(name, None)  # of whoever runs the tests
    os.environ.update(environment)
    try:
        sys.exit(importlib.import_module(module).main(arguments))
    finally:
        atexit._run_exitfuncs()  # a forked process ends without; Composer cleans up so
