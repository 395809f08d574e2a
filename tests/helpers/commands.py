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
TRAIN = "dept.training.arguments"
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")


class Commands:
    """Runs the ``main`` of a module as a process of its own would, without paying for its imports.

    Args:
        logs: folder for what commands print.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._context = forks()

    def run(self, name: str, module: str, arguments: Sequence[str], processes: int = 1) -> None:
        """Run one command; what it printed is in the error if it fails.

        Args:
            name: of its logs.
            module: whose ``main`` it is.
            arguments: of the command.
            processes: of the job, as ``composer -n`` starts them.
        """
        codes = [member.exitcode for member in self._joined(name, module, arguments, processes)]
        assert codes == [0] * processes, self._log(name).read_text()

    def kill(
        self, name: str, module: str, arguments: Sequence[str], signal: int, when: Callable
    ) -> int:
        """Start one command, and send it a signal as soon as ``when()`` is true; its exit status.

        Raises:
            AssertionError: it ended before.
        """
        (member,) = self._started(name, module, arguments, 1)
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

    def _log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def _joined(self, *job) -> list:
        members = self._started(*job)
        for member in members:
            member.join()
        return members

    def _started(self, name: str, module: str, arguments: Sequence[str], processes: int) -> list:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        members = []
        for rank in range(processes):
            place = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0}
            place |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            environment = {key: str(value) for key, value in place.items()} | address
            log = str(self._log(f"{name}-{rank}" if rank else name))
            job = (module, list(arguments), log, environment if processes > 1 else {})
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
