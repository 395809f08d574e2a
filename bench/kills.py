"""A run that is killed again and again, against one that is not: `make faults`.

    python bench/kills.py [--workers 2] [--launcher] [--kills 30] [--seed 0] [key=value ...]

Trains an experiment once in peace. Then trains it under another name, kills its processes at random
moments and gives the same command again, until it comes to its end, or has been killed often
enough; if it ends before, another one is begun. Told are the kinds of death, how many batches each
cost, and whether what was learned, and `metrics.jsonl`, are the same to the last bit.

`--launcher` runs the command a user does, which spends a minute on imports at each start; without
it, processes are forked from one that has imported everything, in place of the launcher.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from jobs import FORKED, LAUNCHED, ForkedJob, Job, LaunchedJob

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("PYTHONWARNINGS", "ignore:pkg_resources is deprecated")

DEATHS = FORKED
SMALL = [
    "variables.local_steps=10",
    "max_duration=4ep",
    "eval_interval=4ep",
    "callbacks.source_metrics.held_out_interval=4ep",
    "save_interval=1ba",
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_layers=2",
]


@dataclass
class Fire:
    """How a run is killed.

    Attributes:
        kills: how often.
        seed: of the moments.
        launcher: whether by composer's launcher, not forked.
        window: seconds after the first batch of a start, in which the moment is drawn.
        early: which part of the kills is before training, while a start looks into what is left.
        startup: seconds after a start, in which the moment of those is drawn.
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
        return LAUNCHED if self.launcher else FORKED

    def start(self, command: list[str], workers: int) -> Job:
        """Start a job."""
        return (LaunchedJob if self.launcher else ForkedJob)(command, workers)


@dataclass
class Outcome:
    """What a killed run went through."""

    lost: dict[str, list[int]] = field(default_factory=dict)
    """Batches that were trained and had to be trained again, at each death, by kind."""

    survived: dict[str, int] = field(default_factory=dict)
    """After how many deaths the same command went on, by kind."""

    differences: list[str] = field(default_factory=list)
    """Names of what is not the same as in the run that was left in peace."""

    failure: str | None = None
    """What a start failed with."""

    @property
    def kills(self) -> int:
        """How many there were."""
        return sum(map(len, self.lost.values()))

    def table(self) -> str:
        """As Markdown."""
        lines = [
            "| fault | times tried | times survived | batches lost, mean | most |",
            "|---|---:|---:|---:|---:|",
        ]
        for death, lost in self.lost.items():
            mean = sum(lost) / len(lost)
            lines.append(
                f"| {death} | {len(lost)} | {self.survived.get(death, 0)} | {mean:.1f} "
                f"| {max(lost)} |"
            )
        return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--yaml", default="yamls/dept_spec.yaml")
    parser.add_argument("--launcher", action="store_true", help="composer -n W train.py")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--window", type=float, default=0.4, help="seconds after the first batch")
    parser.add_argument("--early", type=float, default=0.1, help="part of kills before training")
    parser.add_argument("--startup", type=float, help="seconds that those are drawn from")
    options, overrides = parser.parse_known_args(arguments)
    startup = options.startup or (60.0 if options.launcher else 3.0)
    fire = Fire(
        options.kills, options.seed, options.launcher, options.window, options.early, startup
    )
    began = time.monotonic()
    outcome = compare(options.yaml, [*SMALL, *overrides], options.workers, fire)
    kind = "of composer -n" if fire.launcher else "that were forked"
    print(outcome.table())
    print(
        f"{outcome.kills} kills of {options.workers} processes {kind}, seed {fire.seed}, "
        f"{time.monotonic() - began:.0f} s; differences from the run in peace: "
        f"{', '.join(outcome.differences) or 'none'}"
    )
    if outcome.failure:
        print(outcome.failure)
    return 1 if outcome.differences or outcome.failure else 0


def compare(
    yaml: str, overrides: list[str], workers: int, fire: Fire, root: Path = Path()
) -> Outcome:
    """Train in peace, and under fire, and compare.

    Args:
        yaml: the experiment.
        overrides: of it.
        workers: processes that train sources side by side.
        fire: how it is killed.
        root: folder that holds ``runs/``.
    """
    runs = {name: root / "runs" / f"tmp-kills-{os.getpid()}-{name}" for name in ("peace", "fire")}
    commands = {n: [yaml, f"run_name={f.name}", *overrides] for n, f in runs.items()}
    outcome, draw = Outcome(), random.Random(fire.seed)
    try:
        job = fire.start(commands["peace"], workers)
        if job.wait() != 0:
            outcome.failure = f"the run in peace failed: see {job.log}"
        while outcome.kills < fire.kills and outcome.failure is None:
            shutil.rmtree(runs["fire"], ignore_errors=True)
            under_fire(commands["fire"], runs["fire"], workers, fire, draw, outcome)
            if outcome.failure is None:
                outcome.differences += differences(runs["peace"], runs["fire"])
        return outcome
    finally:
        for folder in runs.values():
            if outcome.failure is None and not outcome.differences:
                shutil.rmtree(folder, ignore_errors=True)
                (Path("runs") / f"{folder.name}.log").unlink(missing_ok=True)


def under_fire(
    command: list[str],
    folder: Path,
    workers: int,
    fire: Fire,
    draw: random.Random,
    outcome: Outcome,
) -> None:
    """Kill a run until it was killed often enough, and let it come to its end."""
    died: list[str] = []  # since a start came to train
    while True:
        job = fire.start(command, workers)
        goes_on = outcome.kills < fire.kills
        next_death = fire.deaths[outcome.kills % len(fire.deaths)]
        is_early = goes_on and draw.random() < fire.early
        if is_early:
            until = time.monotonic() + draw.uniform(0, fire.startup)
            while time.monotonic() < until and job.status is None:
                time.sleep(0.005)
        elif goes_on:
            job.wait_until_training(folder)
            if next_death == "SIGKILL in a save":
                job.wait_until_saving(folder)
            else:
                time.sleep(draw.uniform(0, fire.window))
        if (not goes_on or job.status is not None) and job.wait() != 0:
            outcome.failure = f"after {outcome.kills} kills, a start failed: see {job.log}"
            return
        is_early = is_early and job.status is None
        for death in () if is_early else died:
            outcome.survived[death] = outcome.survived.get(death, 0) + 1
        if not goes_on or job.status is not None:
            return
        job.die(next_death, draw)
        died = [*(died if is_early else ()), next_death]
        lost = 0 if is_early else max(batch_reached(folder) - newest_checkpoint(folder), 0)
        outcome.lost.setdefault(next_death, []).append(lost)
        when = "before training" if is_early else f"after batch {batch_reached(folder)}"
        print(f"{outcome.kills}: {next_death} {when}, {lost} batches lost", file=sys.stderr)


def batch_reached(folder: Path) -> int:
    """The last batch of the first worker that ``metrics.jsonl`` tells of."""
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
    """What two finished runs do not have in common: tensors, metrics, figures of the summary."""
    import torch

    from dept.checkpoint.reader import read_trained

    found = []
    ours, theirs = (_learned(read_trained(folder / "checkpoints")) for folder in (peace, fire))
    for name in ours.keys() | theirs.keys():
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name]):
            found.append(name)
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (peace, fire)]
    if list(map(json.loads, lines[0])) != list(map(json.loads, lines[1])):
        found.append("metrics.jsonl")
    first, second = (json.loads((f / "summary.json").read_text()) for f in (peace, fire))
    found += [key for key in ("sources", "average", "tokens", "steps") if first[key] != second[key]]
    return sorted(found)


def _learned(trained) -> dict:
    learned = dict(trained.parameters)
    if trained.variant in ("spec", "spec_opt"):
        for source, values in trained.private().items():
            learned |= {f"{source}/{name}": value for name, value in values.items()}
    return learned


if __name__ == "__main__":
    sys.exit(main())
