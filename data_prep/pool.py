"""Tasks on all cores, with one progress bar: rate in text bytes per second and remaining time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dept.errors import DataError

_counter: Any = None  # shared bytes-done counter of a worker process, set by _start


class Task:
    """Reports the progress of a task while it runs."""

    def __init__(self) -> None:
        self._at = 0

    def advance(self, to: int, last: bool = False) -> None:
        """Reports progress by the bytes done so far; small steps wait for the next call unless it
        is the last.

        Args:
            to: bytes done since the start of the task.
            last: report even a small step.
        """
        if last or to - self._at >= 1 << 18:
            self.report(to - self._at)
            self._at = to

    def report(self, size: int) -> None:
        """Counts `size` more bytes of text as done."""
        with _counter.get_lock():
            _counter.value += size


class Workers:
    """A pool of worker processes that die with this one, also when it is killed.

    Processes are spawned, not forked: the progress bar has a thread, and a fork would share its
    locks.

    Args:
        count: processes, which start when they are first needed; 0 for one a core.
        console: for progress.
    """

    def __init__(self, count: int, console: Console):
        can_bind = hasattr(os, "sched_getaffinity")
        count = count or (len(os.sched_getaffinity(0)) if can_bind else os.cpu_count() or 1)
        context = multiprocessing.get_context("spawn")
        self._console = console
        self._done = context.Value("q", 0)
        self._is_over = context.RawValue("b", 0)  # without a lock, which a dead process may hold
        given = (os.getpid(), self._done, self._is_over)
        self._pool = ProcessPoolExecutor(count, context, _start, given)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.value = 1
        # Not left to the interpreter's exit: there CPython 3.11 writes to a pipe that the pool's
        # own thread may be closing (OSError: Bad file descriptor).
        self._pool.shutdown(cancel_futures=True)

    def run(
        self, title: str, function: Callable, arguments: Sequence[tuple], total: int | None
    ) -> list[Any]:
        """Calls `function(task, *arguments)` for each of the arguments.

        Args:
            title: of the progress bar and the line that remains.
            function: a module-level function.
            arguments: one tuple a task.
            total: bytes of text that the tasks will report in all, None if unknown.

        Returns:
            The results in the order of the arguments.

        Raises:
            DataError: from a task, or a worker was killed.
        """
        if not arguments:
            return []
        self._done.value = 0
        start = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        quiet = not self._console.is_terminal  # a log file gets the last line alone
        with Progress(*columns, console=self._console, transient=True, disable=quiet) as progress:
            bar = progress.add_task(title, total=total)
            futures = [self._pool.submit(_call, function, a) for a in arguments]
            failed, pending = False, set(futures)
            while pending and not failed:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
                progress.update(bar, completed=self._done.value)
                failed = any(future.exception() for future in done)
        try:
            results = [future.result() for future in futures if not failed or future.done()]
        except BrokenProcessPool:
            raise DataError(
                "A worker process was killed, perhaps for lack of memory: "
                "run the same command again with --workers 1; it resumes from here."
            ) from None
        size, seconds = self._done.value, time.monotonic() - start
        self._console.print(
            f"{title}: {size / 1e6:.1f} MB in {seconds:.1f} s, {size / 1e6 / seconds:.2f} MB/s",
            highlight=False,
        )
        return results


def _start(parent: int, counter: Any, is_over: Any) -> None:
    global _counter
    _counter = counter
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is all there is to do
    # Importing torch takes seconds, and tokenizers do not need it.
    os.environ.update(USE_TORCH="0", TRANSFORMERS_NO_ADVISORY_WARNINGS="1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us

    def follow() -> None:
        while os.getppid() == parent and not is_over.value:
            time.sleep(0.05)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _call(function: Callable, arguments: tuple) -> Any:
    return function(Task(), *arguments)
