"""The steps of bench/gpu.sh: each has its own time limit, and a failing one stops no other.

Runs that are not timed are side by side. The record, `gpu-<card>.json`, is written after each step:
what each command ended with, facts about the machine, attention kernels, and for each run its
speed, memory, and times of swaps and outer steps.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import gpu_record

REPOSITORY = Path(__file__).parent.parent
WORK = REPOSITORY / "build" / "gpu-bench"
FACTS, KERNELS = WORK / "facts.json", WORK / "attention.json"
SECONDS = 585  # of all steps; what has no time left is recorded as left out
CORPUS = "gpu"
SMOKE = ("std_steps", "dept_glob", "dept_trim", "dept_spec", "dept_spec_opt", "dept_spec_llama")


@dataclass(frozen=True)
class Size:
    """How much is done: on a GPU for ten minutes, on a CPU only to try the script."""

    length: int = 2048
    vocabulary: int = 50_257
    train: int = 1700  # samples of a source
    slots: int = 6  # local steps, of throughput
    batch: int = 32
    steps: int = 50  # local steps, of the round of yamls/pile/125m_spec.yaml
    body: tuple[str, ...] = ()
    compiler: str = "compile_config={}"


TINY = Size(
    length=32,
    vocabulary=300,
    train=8,
    slots=2,
    batch=2,
    steps=2,
    body=("model.d_model=32", "model.n_heads=2", "model.n_layers=2"),
    compiler="compile_config={backend: eager}",
)


@dataclass(frozen=True)
class Job:
    """A command of a step: a script with arguments, as one process or as several workers."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    processes: int = 1
    run: str | None = None  # name of the run, if it trains one


@dataclass(frozen=True)
class Step:
    """Commands that run side by side."""

    name: str
    seconds: int
    jobs: tuple[Job, ...] = field(default_factory=tuple)


def steps_of(size: Size) -> list[Step]:
    """All steps, the most useful ones first."""
    small = ["variables.local_steps=2", "variables.worker_batch=2"]
    small += ["device_eval_batch_size=2", "eval_subset_num_batches=1"]
    big = [*size.body, f"variables.worker_batch={size.batch}", "scheduler.t_warmup=0ba"]
    big += [f"device_eval_batch_size={min(8, size.batch)}", "eval_subset_num_batches=1"]
    big += ["callbacks.speed_monitor.window_size=1", "callbacks.speed_monitor.time_unit=seconds"]
    timed = [*big, "save_folder=null", "autoresume=false"]

    def train(name: str, yaml: str, *more: str, run: str = "", processes: int = 1) -> Job:
        run = run or name
        given = (f"yamls/{yaml}.yaml", *common(size), f"run_name={run}", *more)
        return Job(name, "train.py", ("--debug", *given), processes, run)

    def throughput(name: str, yaml: str, *more: str, seconds: int = 70) -> Step:
        every = 4 if "std" in yaml else 1  # as many steps as the four sources of a round have
        rounds = [f"variables.local_steps={size.slots * every}", "max_duration=2ep"]
        return Step(name, seconds, (train(name, f"pile/{yaml}", *timed, *rounds, *more),))

    attention = ("bench/gpu_attention.py", (str(KERNELS), f"--length={size.length}"))
    return [
        Step(
            "machine",
            80,
            (
                Job("facts", "bench/gpu_record.py", (str(FACTS),)),
                Job("attention", *attention),
            ),
        ),
        Step("smoke", 110, tuple(train(n, n, *small, "max_duration=1ep") for n in SMOKE)),
        Step(
            "again",
            90,
            (
                train("resume", "dept_spec", *small, "max_duration=2ep", run="dept_spec"),
                train("two_workers", "dept_glob", *small, "max_duration=1ep", processes=2),
            ),
        ),
        throughput("glob", "125m_glob"),
        throughput("std", "125m_std"),
        throughput("spec_opt", "125m_spec_opt"),
        Step(
            "pile_round",
            110,
            (
                train(
                    "pile_round",
                    "pile/125m_spec",
                    *big,
                    f"variables.worker_batch={size.batch // 2}",
                    f"variables.local_steps={size.steps}",
                    "max_duration=1ep",
                ),
            ),
        ),
        throughput("std_compiled", "125m_std", size.compiler, seconds=90),
        throughput("glob_compiled", "125m_glob", size.compiler, seconds=90),
    ]


def common(size: Size) -> list[str]:
    """Overrides that read the corpus of random tokens, and keep all files below WORK."""
    return [
        f"variables.corpus={CORPUS}",
        f"train_loader.root={WORK}",
        f"tokenizer.name={WORK}/tokenizers/{CORPUS}/global",
        f"max_seq_len={size.length}",
        f"save_folder={WORK}/runs/${{run_name}}/checkpoints",
        f"callbacks.run_files.folder={WORK}/runs/{{run_name}}",
        f"loggers.jsonl.path={WORK}/runs/{{run_name}}/metrics.jsonl",
    ]


class Bench:
    """Runs steps, and writes the record after each.

    Args:
        out: folder of the record.
        device: ``gpu``, or ``cpu`` to fork commands from this process after its imports.
        began: when the script began, in seconds of ``time.monotonic``.
    """

    def __init__(self, out: Path, device: str, began: float) -> None:
        self.out, self.device, self.began = out, device, began
        self.ended: dict[str, dict] = {}
        self.runs: dict[str, dict] = {}
        self.logs = WORK / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)

    def step(self, step: Step) -> None:
        """Run the commands of a step side by side, and stop those that are over its limit."""
        left = SECONDS - (time.monotonic() - self.began)
        if self.device == "gpu" and left < 15:
            self.ended |= {j.name: {"step": step.name, "status": "no time left"} for j in step.jobs}
            return self.write()
        began = time.monotonic()
        limit = min(step.seconds, left) if self.device == "gpu" else 600
        started = []
        for job in step.jobs:
            started.append((job, self._start(job)))
            if self.device == "cpu":  # two cores run one after another as fast
                self._end(step, *started.pop(), began, limit)
                began = time.monotonic()
        for job, processes in started:
            self._end(step, job, processes, began, limit)
        self.write()

    def _start(self, job: Job) -> list:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for rank in range(job.processes):
            place: dict[str, str] = {}
            if job.processes > 1:
                place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
                place |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
                place |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(job.processes))
            start = forked if self.device == "cpu" else launched
            processes.append(start(job, place, self.logs / f"{job.name}-{rank}.log"))
        return processes

    def _end(self, step: Step, job: Job, processes: list, began: float, limit: float) -> None:
        statuses = []
        for process in processes:
            statuses.append(process.wait_until(began + limit))
        seconds = round(time.monotonic() - began, 1)
        status = next((s for s in statuses if s != 0), 0)
        self.ended[job.name] = {"step": step.name, "status": status, "seconds": seconds}
        if job.run is not None and status == 0:
            self.runs[job.name] = gpu_record.of_run(WORK / "runs" / job.run)
        print(f"{job.name}: {status} after {seconds} s", flush=True)

    def write(self) -> None:
        """Write the record, and the ends of all logs."""
        facts = read(FACTS)
        card = (facts or {}).get("card") or "unknown"
        record = {
            "card": card,
            "device": self.device,
            "facts": facts,
            "seconds": round(time.monotonic() - self.began, 1),
            "commands": self.ended,
            "attention": read(KERNELS),
            "runs": gpu_record.with_utilisation(self.runs, card),
            "two_workers_differ_by": gpu_record.difference(
                WORK / "runs" / "dept_glob", WORK / "runs" / "two_workers"
            ),
        }
        name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
        (self.out / f"gpu-{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        ends = [f"=== {p.stem}\n{tail(p)}\n" for p in sorted(self.logs.glob("*.log"))]
        (self.out / f"gpu-{name}.log").write_text("\n".join(ends))


class launched:
    """A process of its own, as a user starts it."""

    def __init__(self, job: Job, place: dict[str, str], log: Path) -> None:
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, job.script, *job.arguments],
                cwd=REPOSITORY,
                env=os.environ | place,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until(self, end: float) -> int | str:
        """Its exit status; it is killed at ``end``, a time of ``time.monotonic``."""
        try:
            return self.process.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return "over its time limit"


class forked:
    """The same, forked from this process, so that imports are paid for once; only on a CPU."""

    def __init__(self, job: Job, place: dict[str, str], log: Path) -> None:
        arguments = (job.script, job.arguments, place, str(log))
        self.process = get_context("fork").Process(target=_run, args=arguments)
        self.process.start()

    def wait_until(self, end: float) -> int | str:
        """Its exit status; it is killed at ``end``, a time of ``time.monotonic``."""
        self.process.join(max(1.0, end - time.monotonic()))
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            return "over its time limit"
        return self.process.exitcode


def _run(script: str, arguments: tuple[str, ...], place: dict[str, str], log: str) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.update(place)
    os.chdir(REPOSITORY)
    if script == "train.py":
        from dept.training.arguments import main
    else:
        main = __import__(Path(script).stem).main
    sys.exit(main(list(arguments)))


def read(path: Path):
    """The content of a file of JSON; ``None`` if it is missing or cut short."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def tail(path: Path, size: int = 4000) -> str:
    """The end of a log."""
    return path.read_bytes()[-size:].decode(errors="replace")


def main() -> int:
    """Run the steps; 0 if every command ended well."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("steps", nargs="*", help="only these steps")
    options.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    options.add_argument("--out", type=Path, default=Path("results/bench"))
    chosen = options.parse_args()
    size = Size() if chosen.device == "gpu" else TINY
    out = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    make_corpus(size)
    bench = Bench(out, chosen.device, began)
    if chosen.device == "cpu":
        import_all()
    for step in steps_of(size):
        if not chosen.steps or step.name in chosen.steps:
            bench.step(step)
    return int(any(each["status"] != 0 for each in bench.ended.values()))


def make_corpus(size: Size) -> None:
    """Make the corpus, unless an earlier call did, and forget earlier runs."""
    import gpu_corpus

    for folder in ("runs", "logs"):
        shutil.rmtree(WORK / folder, ignore_errors=True)
    for file in (FACTS, KERNELS):
        file.unlink(missing_ok=True)
    made = read(WORK / "data" / CORPUS / "corpus.json")
    if not made or made["sequence_length"] != size.length:
        sizes = {"length": size.length, "vocabulary": size.vocabulary}
        gpu_corpus.make(WORK, CORPUS, **sizes, train=size.train, val=8)


def import_all() -> None:
    """What every forked command needs."""
    import dept.training.command
    import dept.training.registration  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
