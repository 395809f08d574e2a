"""The paper's comparison on the embedded corpora: `python -m dept.evaluation.reproduce [--list]`.

Runs what `eval/reproduce.yaml` plans, several runs at a time, each an ordinary run of `train.py`
with its files in `runs/`; then writes `results/`. After a kill the same command resumes. Finished
runs are not run again.
"""

import argparse
import os
import re
import sys
from pathlib import Path

# As train.py, and before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("PYTHONWARNINGS", "ignore:pkg_resources is deprecated")  # by llm-foundry

from dept.data.corpus import read_corpus
from dept.evaluation.reproduce import runner
from dept.evaluation.reproduce.jobs import jobs
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
    options = parser.parse_args(arguments)
    try:
        plan = read_plan(options.plan)
        sources = {corpus: read_corpus(Path("."), corpus).sources for corpus in plan.corpora}
        wanted = [job for job in jobs(plan, sources) if re.search(options.only, job.name)]
        done = {job.name for job in wanted if runner.is_finished(job)}
    except ValueError as error:
        log.error(error)
        return 2
    if options.list:
        for job in wanted:
            print(job.name, "finished" if job.name in done else "")
        left = [job for job in wanted if job.name not in done]
        seconds = [plan.seconds.get(job.stage) for job in left]
        about = "" if None in seconds else f": about {sum(seconds) / 3600:.1f} hours of one core"
        log.info(f"{len(wanted)} runs, {len(left)} of them not finished{about}")
        return 0
    failed = runner.run(wanted, done, options.jobs)
    runner.write(wanted, options.results)
    for job in failed:
        log.error(f"{job.name} failed: see {runner.log_of(job)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
