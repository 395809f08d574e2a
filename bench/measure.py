"""What the rows of `make bench` share: alternation, median and spread, the record, the table."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from dept.checkpoint import durable

REPOSITORY = Path(__file__).parent.parent
LIBRARIES = ("torch", "mosaicml", "llm-foundry", "mosaicml-streaming", "tokenizers")


@dataclass(frozen=True)
class Setting:
    """What is measured on, and how much.

    Attributes:
        times: alternations of each row.
        megabytes: text of the rows about preparation, in MB.
        small: the least work with which a row still runs, for tests; its numbers mean nothing.
        root: folder of `data/` and `tokenizers/`.
        corpus: the prepared corpus to train on.
    """

    times: int = 5
    megabytes: float = 200.0
    small: bool = False
    root: Path = REPOSITORY
    corpus: str = "multilingual"

    @property
    def described(self) -> Any:
        """The content of `corpus.json`."""
        return json.loads((self.root / "data" / self.corpus / "corpus.json").read_text())

    @property
    def sources(self) -> list[str]:
        """Names of the sources of the corpus."""
        return self.described["sources"]

    @property
    def overrides(self) -> list[str]:
        """Overrides of a yaml that train on the corpus."""
        return [
            f"variables.corpus={self.corpus}",
            f"train_loader.root={self.root}",
            f"tokenizer.name={self.root}/tokenizers/{self.corpus}/global",
            f"max_seq_len={self.described['sequence_length']}",
        ]

    def shards(self, sources: Sequence[str]) -> dict[str, Path]:
        """Training shards in the global tokenizer, by source.

        Args:
            sources: names of sources.
        """
        data = self.root / "data" / self.corpus
        return {source: data / source / "global" / "train" for source in sources}


@dataclass(frozen=True)
class Result:
    """A line of the table.

    Attributes:
        what: what distinguishes it from other lines of its row; may be empty.
        values: the judged number of each alternation.
        raw: what the numbers were computed from, such as the seconds of both sides.
    """

    what: str
    values: Sequence[float]
    raw: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Spent:
    """Time of one measurement.

    Attributes:
        wall: wall-clock time, in seconds; it depends on other work on the machine.
        cpu: CPU time of all processes and threads, in seconds.
    """

    wall: float
    cpu: float


@dataclass(frozen=True)
class Row:
    """One thing that is measured.

    Attributes:
        name: name of the row, and of its record.
        title: what is measured.
        against: what it is compared with, or divided by.
        goal: limit of the median: `>=` or `<=`, a number, and a unit.
        measure: measures it.
    """

    name: str
    title: str
    against: str
    goal: str
    measure: Callable[[Setting], list[Result]]

    def reaches(self, median: float) -> bool:
        """Whether a median is within the goal.

        Args:
            median: in the unit of the goal.
        """
        sign, limit, *_ = self.goal.split()
        return median >= float(limit) if sign == ">=" else median <= float(limit)


def alternate(*measures: Callable[[], Any], times: int) -> list[list[Any]]:
    """Call measurements one after the other, again and again.

    Every other time in reverse order, so that a drift of the machine's speed favours none.

    Args:
        measures: each measures one side.
        times: how often each is called.

    Returns:
        What each side returned.
    """
    found: list[list[Any]] = [[] for _ in measures]
    for turn in range(times):
        order = range(len(measures)) if turn % 2 == 0 else reversed(range(len(measures)))
        for side in order:
            found[side].append(measures[side]())
    return found


def quotients(dividends: Sequence[float], divisors: Sequence[float]) -> list[float]:
    """The quotient of each pair of an alternation.

    Args:
        dividends: one number a pair.
        divisors: one number a pair, none of them 0.
    """
    return [a / b for a, b in zip(dividends, divisors, strict=True)]


def ratios(dividends: Sequence[Spent], divisors: Sequence[Spent], what: str = "") -> list[Result]:
    """Ratios of times, in wall-clock and in CPU time, pair by pair.

    The speed of one side over that of another is the time of the other over its own.

    Args:
        dividends: what one side spent, in each alternation.
        divisors: what the other side spent.
        what: what is measured, before the kind of time.
    """
    found = []
    for kind, name in (("wall", "wall-clock time"), ("cpu", "CPU time")):
        above, below = ([getattr(spent, kind) for spent in side] for side in (dividends, divisors))
        raw = {"dividend_seconds": above, "divisor_seconds": below}
        found.append(Result(f"{what}, {name}" if what else name, quotients(above, below), raw))
    return found


def run(command: Sequence[str], folder: Path = REPOSITORY) -> tuple[str, Spent]:
    """Run a command.

    Args:
        command: program and arguments.
        folder: its working directory.

    Returns:
        Its output, and what it and the processes that it waited for spent.

    Raises:
        RuntimeError: it failed.
    """
    environment = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONWARNINGS": "ignore", **os.environ}
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    seconds, after = time.perf_counter() - began, os.times()
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed:\n{done.stdout}{done.stderr}")
    cpu = after.children_user + after.children_system
    return done.stdout, Spent(seconds, cpu - before.children_user - before.children_system)


def record(row: Row, results: Sequence[Result], setting: Setting, folder: Path) -> dict[str, Any]:
    """Write the record of a row.

    Args:
        row: the row.
        results: what it measured.
        setting: what was measured on.
        folder: folder of the records.

    Returns:
        The content of `<folder>/<row>.json`.
    """
    content = {
        "row": row.name,
        "title": row.title,
        "against": row.against,
        "goal": row.goal,
        "results": [
            {
                "what": result.what,
                "median": statistics.median(result.values),
                "least": min(result.values),
                "greatest": max(result.values),
                "is_reached": row.reaches(statistics.median(result.values)),
                "values": list(result.values),
                "raw": result.raw,
            }
            for result in results
        ],
        "command": f"make bench ROW={row.name}",
        "small": setting.small,
        "text_mb": setting.megabytes,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _machine(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    folder.mkdir(parents=True, exist_ok=True)
    durable.write(folder / f"{row.name}.json", json.dumps(content, indent=1) + "\n")
    return content


def table(records: Sequence[dict[str, Any]]) -> Table:
    """A table of records.

    Args:
        records: what :func:`record` returned.
    """
    made = Table()
    made.add_column("row")
    made.add_column("measured", overflow="fold")
    for header in ("median", "spread", "goal"):
        made.add_column(header, justify="right")
    made.add_column("")
    for content in records:
        unit = (content["goal"].split()[2:] or [""])[0]
        for line in content["results"]:
            numbers = [number(line[key]) for key in ("median", "least", "greatest")]
            made.add_row(
                content["row"],
                line["what"] or content["title"],
                f"{numbers[0]} {unit}".strip(),
                f"{numbers[1]} to {numbers[2]}",
                content["goal"],
                "yes" if line["is_reached"] else "no",
            )
    return made


def number(value: float) -> str:
    """A number in three digits: 12.3, 0.0123.

    Args:
        value: the number.
    """
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _commit() -> str | None:
    """The commit of the repository, with a mark if files have changed since."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def _machine() -> dict[str, Any]:
    """Processor, cores, memory, GPUs, and the load when the row ended, which other work adds to."""
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": _gpus(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "system": platform.system(),
    }


def cores() -> int:
    """Cores that this process may use."""
    can_bind = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if can_bind else os.cpu_count() or 1


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except OSError:
        return []
