"""What a run of the tests prints as it runs: a line a file with its time, and each failure."""

import time
from collections import Counter

import pytest

_COUNTED = ("passed", "failed", "error", "skipped")


class Progress:
    """Prints in place of dots; also where pytest-xdist has several processes run the tests."""

    def __init__(self, terminal) -> None:
        self._terminal = terminal
        self._began = time.monotonic()
        self._files = {}  # of each process: the file it is in, outcomes of its tests, seconds

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self, report):
        """No letter for a test that passed, and a line of its own for one that did not."""
        category, letter, word = yield
        if not letter:
            return category, letter, word
        name = report.nodeid
        return category, "" if category == "passed" else f"{category}: {name}\n", word

    def pytest_runtest_logreport(self, report) -> None:
        process = getattr(report, "worker_id", "")
        file = report.nodeid.split("::")[0]
        before = self._files.get(process)
        if before is None or before[0] != file:
            self._write(process)
            self._files[process] = before = (file, Counter(), [])
        before[2].append(report.duration)
        if report.when == "call" or report.outcome != "passed":
            category = "error" if report.failed and report.when != "call" else report.outcome
            before[1][category] += 1

    def pytest_sessionfinish(self) -> None:
        for process in list(self._files):
            self._write(process)

    def _write(self, process) -> None:
        if process not in self._files:
            return
        file, outcomes, seconds = self._files.pop(process)
        passed = int(time.monotonic() - self._began)
        counts = ", ".join(f"{outcomes[name]} {name}" for name in _COUNTED if outcomes[name])
        self._terminal.ensure_newline()
        line = f"{passed // 60:3}:{passed % 60:02}  {file}: {counts} in {sum(seconds):.1f} s\n"
        self._terminal.write(line, flush=True)  # into a file or a pipe, too
