"""A run that is killed again and again learns the same bits: `make faults`.

    python bench/kills.py [--workers 2] [--launcher] [--kills 30] [--seed 0] [key=value ...]

It trains an experiment once without interruption. Then it trains it under another name, kills its
processes at random times and runs the same command again, until there were enough kills and the run
has finished; if it finishes earlier, another run is started. It fails if the parameters or
`metrics.jsonl` differ in a single bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field, fields
from pathlib import Path

from jobs import Job
from markdown_table import markdown

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("PYTHONWARNINGS", "ignore:pkg_resources is deprecated")

MODEL = ["model.d_model=32", "model.n_heads=2", "model.n_layers=2"]
SMALL = [
    "variables.local_steps=10",
    "max_duration=4ep",
    "eval_interval=4ep",
    "callbacks.source_metrics.held_out_interval=4ep",
    "save_interval=1ba",
    *MODEL,
]
DEATHS = ("SIGKILL to a rank", "SIGKILL to the launcher", "SIGTERM to all", "SIGKILL in a save")


@dataclass
class Fire:
    """How a run is killed.

    Attributes:
        kills: number of kills.
        seed: seed of the times of kills.
        launcher: whether composer's launcher starts the ranks, instead of a fork.
        window: seconds after the first batch of a start, within which the time is drawn.
        early: fraction of kills before training, while a start checks earlier files.
        startup: seconds after a start, within which the time of those is drawn.
    """

    kills: int = 30
    seed: int = 0
    launcher: bool = False
    window: float = 0.4
    early: float = 0.0
    startup: float = 3.0

    @property
    def deaths(self) -> tuple[str, ...]:
        """Kinds, one after another."""
        return (*DEATHS, "SIGTERM to the launcher") if self.launcher else DEATHS


@dataclass
class Outcome:
    """The result of a killed run.

    Attributes:
        lost: batches that had to be trained again after each kill, by kind.
        survived: number of kills after which the same command resumed, by kind.
        differences: names of values that differ from the uninterrupted run.
        failure: the error of a start that failed.
    """

    lost: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    survived: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    differences: list[str] = field(default_factory=list)
    failure: str | None = None

    @property
    def kills(self) -> int:
        """How many there were."""
        return sum(map(len, self.lost.values()))


def main(arguments: list[str] | None = None) -> int:
    """Kill a run again and again; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workers", type=int, default=1)
    add("--yaml", default="yamls/dept_spec.yaml")
    add("--launcher", action="store_true", help="composer -n W train.py, a minute for each start")
    add("--kills", type=int, default=30)
    add("--seed", type=int, default=0, help="seed of the times of kills")
    add("--window", type=float, default=0.4, help="seconds after the first batch")
    add("--early", type=float, default=0.1, help="fraction of kills before training")
    add("--startup", type=float, help="seconds within which those are drawn")
    options, overrides = parser.parse_known_args(arguments)
    options.startup = options.startup or (60.0 if options.launcher else 3.0)
    fire = Fire(**{name.name: getattr(options, name.name) for name in fields(Fire)})
    began = time.monotonic()
    outcome = compare(options.yaml, [*SMALL, *overrides], options.workers, fire)
    head = ("fault", "times tried", "times survived", "batches lost, mean", "most")
    rows = (
        (death, len(lost), outcome.survived[death], f"{sum(lost) / len(lost):.1f}", max(lost))
        for death, lost in outcome.lost.items()
    )
    print(markdown(head, *rows))
    kind = "of composer -n" if fire.launcher else "that were forked"
    print(
        f"{outcome.kills} kills of {options.workers} processes {kind}, seed {fire.seed}, "
        f"{time.monotonic() - began:.0f} s; differences from the uninterrupted run: "
        f"{', '.join(outcome.differences) or 'none'}"
    )
    if outcome.failure:
        print(outcome.failure)
    return 1 if outcome.differences or outcome.failure else 0


def compare(yaml: str, overrides: list[str], workers: int, fire: Fire) -> Outcome:
    """Train once without interruption and once with kills, and compare.

    Args:
        yaml: the experiment.
        overrides: overrides of the yaml.
        workers: number of workers, one process each.
        fire: how the run is killed.
    """
    runs = {name: Path("runs", f"tmp-kills-{os.getpid()}-{name}") for name in ("peace", "fire")}
    commands = {n: [yaml, f"run_name={f.name}", *overrides] for n, f in runs.items()}
    outcome, draw = Outcome(), random.Random(fire.seed)
    job = Job(commands["peace"], workers, fire.launcher)
    if job.wait() != 0:
        outcome.failure = f"the uninterrupted run failed: see {job.log}"
    while outcome.kills < fire.kills and outcome.failure is None:
        shutil.rmtree(runs["fire"], ignore_errors=True)
        under_fire(commands["fire"], runs["fire"], workers, fire, draw, outcome)
        if outcome.failure is None:
            outcome.differences += differences(runs["peace"], runs["fire"])
    if outcome.failure is None and not outcome.differences:
        for folder in runs.values():
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_name(f"{folder.name}.log").unlink(missing_ok=True)
    return outcome


def under_fire(
    command: list[str],
    folder: Path,
    workers: int,
    fire: Fire,
    draw: random.Random,
    outcome: Outcome,
) -> None:
    """Kill a run as often as asked, then let it finish.

    Args:
        command: arguments of the training command.
        folder: folder of the run.
        workers: number of processes.
        fire: how to kill.
        draw: random generator of times and of the process to kill.
        outcome: result, which is filled.
    """
    died: list[str] = []  # since a start came to train
    while True:
        job = Job(command, workers, fire.launcher)
        is_enough = outcome.kills >= fire.kills
        next_death = fire.deaths[outcome.kills % len(fire.deaths)]
        is_early = not is_enough and draw.random() < fire.early
        if is_early:
            job.wait(draw.uniform(0, fire.startup))
        elif not is_enough:
            job.wait_until_training(folder)
            if next_death == "SIGKILL in a save":
                job.wait_until_saving(folder)
            else:
                job.wait(draw.uniform(0, fire.window))
        if (is_enough or job.status is not None) and job.wait() != 0:
            outcome.failure = f"after {outcome.kills} kills, a start failed: see {job.log}"
            return
        is_early = is_early and job.status is None
        for death in () if is_early else died:
            outcome.survived[death] += 1
        if is_enough or job.status is not None:
            return
        job.die(next_death, draw)
        died = [*(died if is_early else ()), next_death]
        lost = 0 if is_early else max(batch_reached(folder) - newest_checkpoint(folder), 0)
        outcome.lost[next_death].append(lost)
        when = "before training" if is_early else f"after batch {batch_reached(folder)}"
        print(f"{outcome.kills}: {next_death} {when}, {lost} batches lost", file=sys.stderr)


def batch_reached(folder: Path) -> int:
    """The last batch of the first worker in ``metrics.jsonl``."""
    file = folder / "metrics.jsonl"
    whole = file.read_text().split("\n")[:-1] if file.is_file() else []
    return json.loads(whole[-1])["batch"] if whole else 0


def newest_checkpoint(folder: Path) -> int:
    """The batch of the newest checkpoint that is whole."""
    from dept.checkpoint.durable import is_whole
    from dept.checkpoint.run_folder import numbered_checkpoints

    found = reversed(numbered_checkpoints(folder / "checkpoints"))
    return next((batch for _, batch, path in found if is_whole(path)), 0)


def differences(peace: Path, fire: Path) -> list[str]:
    """Names of tensors, metrics and numbers of the summary that differ between two runs.

    Args:
        peace: folder of the uninterrupted run.
        fire: folder of the killed run.
    """
    import torch

    ours, theirs = (_learned(folder) for folder in (peace, fire))
    found = [
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name])
    ]
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (peace, fire)]
    if list(map(json.loads, lines[0])) != list(map(json.loads, lines[1])):
        found.append("metrics.jsonl")
    first, second = (json.loads((f / "summary.json").read_text()) for f in (peace, fire))
    found += [key for key in ("sources", "average", "tokens", "steps") if first[key] != second[key]]
    return sorted(found)


def _learned(folder: Path) -> dict:
    from dept.checkpoint.reader import read_trained

    trained = read_trained(folder / "checkpoints")
    learned = dict(trained.parameters)
    if trained.variant in ("spec", "spec_opt"):
        for source, values in trained.private().items():
            learned |= {f"{source}/{name}": value for name, value in values.items()}
    return learned


if __name__ == "__main__":
    sys.exit(main())
