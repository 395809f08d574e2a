"""The paper's comparison on the embedded corpora: `python -m dept.evaluation.reproduce [--list]`.

Runs what `eval/reproduce.yaml` plans, or another `--plan`, several runs at a time, each an ordinary
run of `train.py` with its files in `runs/`; then writes `results/`. After a kill the same command
resumes. Finished runs are not run again. `--list` names the runs in their order, `--costs` also
estimates their tokens and core-hours.
"""

import argparse
import math
import os
import re
import sys
import time
from pathlib import Path

# As train.py, and before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("PYTHONWARNINGS", "ignore:pkg_resources is deprecated")  # by llm-foundry

from rich.table import Table

from dept import terminal
from dept.data.corpus import read_corpus
from dept.evaluation.reproduce import runner
from dept.evaluation.reproduce.jobs import Job, jobs
from dept.evaluation.reproduce.plan import PLAN, read_plan
from dept.log import log


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=PLAN, help="yaml of what to run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--only", default="", help="the runs that this regular expression finds")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where to write")
    parser.add_argument("--list", action="store_true", help="name the runs, and end")
    parser.add_argument("--costs", action="store_true", help="estimate their costs, and end")
    parser.add_argument("--minutes", type=float, help="stop after these, and write what is done")
    options = parser.parse_args(arguments)
    end = math.inf if options.minutes is None else time.monotonic() + 60 * options.minutes
    try:
        plan = read_plan(options.plan)
        sources = {corpus: read_corpus(Path("."), corpus).sources for corpus in plan.corpora}
        wanted = [job for job in jobs(plan, sources) if re.search(options.only, job.name)]
        done = {job.name for job in wanted if runner.is_finished(job)}
    except ValueError as error:
        log.error(error)
        return 2
    if options.costs:
        return _costs(wanted, done, plan.speed)
    if options.list:
        for job in wanted:
            print(job.name, "finished" if job.name in done else "")
        return 0
    failed, stopped = runner.run(wanted, done, options.jobs, lambda: time.monotonic() >= end)
    runner.write(wanted, options.results)
    for job in failed:
        log.error(f"{job.name} failed: see {runner.log_of(job)}")
    if stopped:
        log.info(f"{len(stopped)} of {len(wanted)} runs are left: the same command resumes")
    return 1 if failed else 0


def _costs(wanted: list[Job], done: set[str], speed: float) -> int:
    """Print the runs with their costs, and the sums of parts; returns the exit status."""
    from dept.evaluation.reproduce.budget import by_part, estimate

    try:
        costs = estimate(wanted, speed).assign(finished=[job.name in done for job in wanted])
    except ValueError as error:
        log.error(error)
        return 2
    for run in costs.itertuples():
        cost = "" if math.isnan(run.tokens) else f"{run.tokens:,.0f} tokens, {run.core_hours:.2f} h"
        print(run.run, cost, "finished" if run.finished else "")
    table = Table(title="core-hours, estimated")
    for column in ("part", "runs", "finished", "million tokens", "core-hours", "up to here"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, of in by_part(costs).iterrows():
        values = (of["tokens"] / 1e6, of["core_hours"], of["up_to_here"])
        counts = (str(int(of[key])) for key in ("runs", "finished"))
        table.add_row(str(part) or "all", *counts, *(f"{value:,.1f}" for value in values))
    terminal.show(table)
    speed_of = f"a core trains on {speed:,.0f} tokens a second: `speed` of the plan"
    print(f"Training and evaluation, if {speed_of}; fine-tuning is left out.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
