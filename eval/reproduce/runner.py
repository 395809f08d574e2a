"""Runs of a plan, several at a time, each an ordinary run of `train.py` or `eval/finetune.py`."""

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dept.checkpoint import durable, library_patches
from dept.config import extends
from dept.evaluation.finetuning.options import read_options
from dept.evaluation.reproduce.jobs import Job
from dept.evaluation.reproduce.records import record
from dept.training import arguments as training
from dept.training.summary import read_summary

STOPPED = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a run that was stopped, and did not fail."""


def is_finished(job: Job) -> bool:
    """Whether an earlier comparison ran the job, as the plan has it now.

    Raises:
        ConfigError: it was run with other settings.
    """
    if summary_of(job) is None:
        return False
    from dept.evaluation import finetune  # they read checkpoints with torch; a list without
    from dept.training import earlier_job  # finished runs is printed at once

    config = extends.resolve(extends.load(job.yaml, job.overrides))
    if job.stage == "downstream":
        options = read_options(config)
        return finetune.look_into(Path("runs") / job.name, options) is not None
    return earlier_job.look_into(Path("runs") / job.name, config, is_first=False) is not None


def summary_of(job: Job) -> dict | None:
    """The summary of a job that has finished."""
    return read_summary(Path("runs") / job.name / "summary.json")


def log_of(job: Job) -> Path:
    """The file with the output of a job."""
    return Path("runs") / job.name / "log.txt"


def run(
    wanted: list[Job],
    done: set[str],
    at_a_time: int,
    is_over: Callable[[], bool] = lambda: False,
    grace: float = 60.0,
) -> tuple[list[Job], list[Job]]:
    """Run all jobs, each when the one that it starts from has finished.

    Args:
        wanted: in the order of their start.
        done: names of those that need not be run.
        at_a_time: how many processes, of one thread each.
        is_over: whether to stop: what runs then saves a checkpoint to resume from.
        grace: seconds in which it may do that.

    Returns:
        Those that failed or could not start for it; and those that were stopped.
    """
    context = multiprocessing.get_context("forkserver")
    # Imports take as long as a short run; a fork has them for nothing.
    context.set_forkserver_preload(["dept.training.command", "dept.training.registration"])
    waiting, failed, stopped = [job for job in wanted if job.name not in done], [], []
    killed_at = math.inf
    running: dict[int, tuple[Job, multiprocessing.Process]] = {}
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("runs", total=len(wanted), completed=len(wanted) - len(waiting))
        while waiting or running:
            if not stopped and is_over():
                stopped = [*waiting, *(job for job, _ in running.values())]
                waiting, killed_at = [], time.monotonic() + grace
                for _, process in running.values():
                    process.terminate()
            if time.monotonic() >= killed_at:
                for _, process in running.values():
                    process.kill()
            unfinished = {job.name for job in waiting} | {job.name for job, _ in running.values()}
            lost = {job.name for job in failed}
            for job in [job for job in waiting if job.after in lost]:
                waiting.remove(job)
                failed.append(job)
            ready = [job for job in waiting if job.after not in unfinished]
            for job in ready[: at_a_time - len(running)]:
                waiting.remove(job)
                process = context.Process(target=_train, args=(job,), name=job.name)
                process.start()
                running[process.sentinel] = (job, process)
            for sentinel in wait(list(running), timeout=1.0):
                job, process = running.pop(sentinel)
                process.join()
                if process.exitcode == 0 and summary_of(job):
                    progress.advance(task)
                    _report(console, job)
                elif job not in stopped or process.exitcode not in STOPPED:
                    failed.append(job)
                    console.print(f"{job.name} failed: see {log_of(job)}", style="red")
            progress.update(task, description=" ".join(map(_round, running.values())) or "runs")
    return failed, [job for job in stopped if job not in failed and not summary_of(job)]


def write(wanted: list[Job], results: Path) -> None:
    """Write the results of finished jobs: ``results/runs/*.json``, tables, plots and a page.

    Args:
        wanted: the jobs to write; those without a summary are left out.
        results: folder of the results.
    """
    from dept.evaluation.report import run_records, writing  # they draw: a list has no use for it

    for job in wanted:
        if summary_of(job):
            text = json.dumps(record(job, Path("runs") / job.name), indent=1)
            durable.write(results / run_records.RUNS / f"{job.name}.json", text + "\n")
    records = run_records.read(results)
    for path in writing.write(records, results) if records else ():
        print(path)


def _report(console: Console, job: Job) -> None:
    summary = summary_of(job)
    if job.stage == "downstream":
        value = summary["test"][summary["metric"]]
        console.print(f"{job.name}: {summary['metric']} {value:.3f}", highlight=False)
        return
    scores = (summary or {}).get("average") or next(iter(summary["held_out"].values()))["eval"]
    console.print(
        f"{job.name}: {scores['bits_per_byte']:.3f} bits per byte, perplexity "
        f"{scores['perplexity']:.1f}, {summary['timing']['train_seconds']:.0f} s",
        highlight=False,
    )


def _round(of: tuple[Job, multiprocessing.Process]) -> str:
    job, log = of[0], log_of(of[0])
    lines = log.read_text().splitlines() if log.is_file() else []
    rounds = [line.split()[1] for line in lines if line.startswith("round ")]
    return f"{job.name} {rounds[-1] if rounds else ''}".strip()


def _train(job: Job) -> None:
    """Train one run in this process, which ends when its parent ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log_of(job).parent.mkdir(parents=True, exist_ok=True)
    with open(log_of(job), "a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK"):
        os.environ.pop(name, None)  # a run is a separate job, however the comparison was started
    from dept.evaluation import finetune

    try:
        command = finetune.main if job.stage == "downstream" else training.main
        sys.exit(command([job.yaml, *job.overrides]))
    finally:
        library_patches.run_exit_functions()


def _end_with_parent(grace: float = 30.0) -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(128 + signal.SIGTERM)
