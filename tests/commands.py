"""Commands of this repository in forked processes, which share one import of their libraries."""

import atexit
import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


class Commands:
    """Runs the ``main`` of a module as a process of its own would, without paying for its imports.

    Args:
        logs: folder for what commands print.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        os.chdir(REPOSITORY)  # where the server of forks finds the modules to import
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["train", "callbacks.registration", "dept.registration"]
        )
        multiprocessing.forkserver.ensure_running()

    def run(self, name: str, module: str, arguments: Sequence[str]) -> None:
        """Run one command; what it printed is in the error if it fails."""
        log = self.logs / f"{name}.log"
        process = self._context.Process(target=_main, args=(module, list(arguments), str(log)))
        process.start()
        process.join()
        assert process.exitcode == 0, log.read_text()

    def start(self, name: str, script: str, arguments: Sequence[str]) -> subprocess.Popen:
        """Start ``python script`` as a user does."""
        command = [sys.executable, script, *arguments]
        with open(self.logs / f"{name}.log", "w") as log:
            return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)


def _main(module: str, arguments: list[str], log: str) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        sys.exit(importlib.import_module(module).main(arguments))
    finally:
        atexit._run_exitfuncs()  # a forked process ends without; Composer cleans up so
