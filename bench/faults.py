"""Repeated faults in runs and corpora: `make faults` and `make soak`.

    python bench/faults.py kills [--workers 2] [--launcher] [--kills 30] [--seed 0] [key=value ...]
    python bench/faults.py damage [--corpus multilingual] [--tries 30] [--seed 0]
    python bench/faults.py soak [--rounds 1000] [--every 50] [--memory 16] [key=value ...]

`kills` trains an experiment once without interruption. Then it trains it under another name, kills
its processes at random times and runs the same command again, until there were enough kills and the
run has finished; if it finishes earlier, another run is started. It fails if the parameters or
`metrics.jsonl` differ in a single bit.

`damage` damages one file of a copy of a corpus at a random place, runs `make check-data` and the
checks of `train.py` before training, and repairs the file. It fails if a damaged file is not named.

`soak` trains many short rounds, and fails if the resources of the process grow: it compares the
second half of the rounds with the first half, without the first tenth. The least memory of a sample
may grow by `--memory` MiB (the greatest depends on evaluations), other resources must not grow.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

from jobs import Job

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
SHORT = [
    "train_loader.sources=[en,it]",
    "variables.local_steps=2",
    "variables.worker_batch=1",
    "save_interval=20ep",
    *MODEL,
]
DEATHS = ("SIGKILL to a rank", "SIGKILL to the launcher", "SIGTERM to all", "SIGKILL in a save")
SHARD, INDEX = "data/*/*/*/*/*/*.mds", "data/*/*/*/*/index.json"
STATS, TOKENIZER = "data/*/*/*/stats.json", "tokenizers/*/*/tokenizer.json"


def table(*rows: tuple) -> str:
    """Rows as a Markdown table; the first one is the head."""
    head, *rest = ("| " + " | ".join(map(str, row)) + " |" for row in rows)
    return "\n".join([head, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *rest])


# Kills


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


def kills(options: argparse.Namespace, overrides: list[str]) -> int:
    """Kill a run again and again; returns the exit status.

    Args:
        options: ``yaml``, ``workers``, and the fields of :class:`Fire`. If ``startup`` is
            ``None`` or 0, it becomes 60 seconds with ``launcher`` and 3 seconds without.
        overrides: overrides of the yaml.
    """
    options.startup = options.startup or (60.0 if options.launcher else 3.0)
    fire = Fire(**{name.name: getattr(options, name.name) for name in fields(Fire)})
    began = time.monotonic()
    outcome = compare(options.yaml, [*SMALL, *overrides], options.workers, fire)
    head = ("fault", "times tried", "times survived", "batches lost, mean", "most")
    rows = (
        (death, len(lost), outcome.survived[death], f"{sum(lost) / len(lost):.1f}", max(lost))
        for death, lost in outcome.lost.items()
    )
    print(table(head, *rows))
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


# Damage


def flip(path: Path, draw: random.Random) -> None:
    """Change one bit.

    Args:
        path: file to damage; it may not be empty.
        draw: random generator of the place.
    """
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw: random.Random) -> None:
    """Cut off the end of a file.

    Args:
        path: file to damage; it may not be empty.
        draw: random generator of the new length.
    """
    os.truncate(path, draw.randrange(path.stat().st_size))


def remove(path: Path, draw: random.Random) -> None:
    """Remove a file.

    Args:
        path: file to remove.
        draw: not used.
    """
    path.unlink()


def empty(path: Path, draw: random.Random) -> None:
    """Fill a file with zeros, as some file systems do after a loss of power.

    Args:
        path: file to damage; its length stays.
        draw: not used.
    """
    path.write_bytes(bytes(path.stat().st_size))


def misname(path: Path, draw: random.Random) -> None:
    """Make an index name a missing shard.

    Args:
        path: an ``index.json`` of shards.
        draw: random generator of the shard.
    """
    content = json.loads(path.read_bytes())
    draw.choice(content["shards"])["raw_data"]["basename"] = "00000/shard.99999.mds"
    path.write_text(json.dumps(content))


def swap(path: Path, draw: random.Random) -> None:
    """Replace a file by one of the same kind from another folder.

    Args:
        path: file to replace.
        draw: random generator of the other file.
    """
    others = [p for p in path.parents[4].rglob(path.name) if p.read_bytes() != path.read_bytes()]
    shutil.copy(draw.choice(others), path)


DAMAGES: dict[str, tuple[str, Callable[[Path, random.Random], None]]] = {
    "a bit of a shard": (SHARD, flip),
    "a shard cut short": (SHARD, cut),
    "a shard of zeros": (SHARD, empty),
    "a shard that is missing": (SHARD, remove),
    "a shard of another source": (SHARD, swap),
    "an index cut short": (INDEX, cut),
    "an index that names a shard that is not there": (INDEX, misname),
    "an index of another source": (INDEX, swap),
    "statistics cut short": (STATS, cut),
    "statistics of another source": (STATS, swap),
    "counts cut short": ("data/*/*/*/counts.npy", cut),
    "a bit of a tokenizer": (TOKENIZER, flip),
    "a tokenizer that is missing": (TOKENIZER, remove),
}


def damage(options: argparse.Namespace, overrides: list[str]) -> int:
    """Damage a corpus again and again; returns the exit status.

    Args:
        options: ``corpus``, ``seed``, and ``tries`` for each kind of damage.
        overrides: not used.
    """
    from rich.console import Console

    from dept.data_prep.check import check_corpus
    from dept.data_prep.pool import Workers

    draw, corpus, rows = random.Random(options.seed), options.corpus, []
    with (
        tempfile.TemporaryDirectory() as folder,
        Workers(0, Console(stderr=True, quiet=True)) as pool,
    ):
        root = Path(folder)
        for kind in ("data", "tokenizers"):
            text = shutil.ignore_patterns("text", "words*")
            shutil.copytree(f"{kind}/{corpus}", root / kind / corpus, ignore=text)
        # Training takes no counts of these.
        held_out = json.loads((root / "data" / corpus / "corpus.json").read_bytes())["held_out"]
        for kind, (pattern, harm) in DAMAGES.items():
            paths = sorted(root.glob(pattern))
            if pattern.endswith("counts.npy"):
                paths = [path for path in paths if path.parts[-3] not in held_out]
            found, refused = 0, 0
            for _ in range(options.tries):
                path = draw.choice(paths)
                whole = path.read_bytes()
                harm(path, draw)
                named = names(path, check_corpus(root, corpus, pool)[0])
                if not named:
                    print(f"not named: {kind}, {path.relative_to(root)}", file=sys.stderr)
                found += named
                refused += is_refused(root, corpus, path)
                path.write_bytes(whole)
            rows.append((kind, options.tries, found, refused))
    head = (f"damage to {corpus}", "times tried", "named by check-data", "before training")
    print(table(head, *rows))
    return int(any(min(found, refused) < tries for _, tries, found, refused in rows))


def names(path: Path, sentences: list[str]) -> bool:
    """Whether a sentence names a file, or its folder of one source and tokenizer.

    Args:
        path: path of the file, below ``data`` or ``tokenizers``.
        sentences: sentences of a check.
    """
    root, depth = ("tokenizers", 3) if "tokenizers" in path.parts else ("data", 4)
    folder = Path(*path.parts[: path.parts.index(root) + depth])
    return any(str(folder) in line for line in sentences)


def is_refused(root: Path, corpus: str, path: Path) -> bool:
    """Whether an experiment that reads a file is refused, in a sentence that names it.

    Args:
        root: folder that holds ``data/`` and ``tokenizers/``.
        corpus: name of the corpus.
        path: the damaged file.
    """
    from dept.config import complete, extends

    tokenizer = path.relative_to(root).parts[3]
    is_global = "global" in (tokenizer, path.parent.name)
    experiment = "dept_trim" if is_global else "dept_spec_opt"
    overrides = [f"variables.corpus={corpus}", f"train_loader.root={root}"]
    try:
        complete.check(extends.resolve(extends.load(f"yamls/{experiment}.yaml", overrides)))
    except ValueError as error:
        return names(path, [str(error)])
    print(f"let through: {path.relative_to(root)}", file=sys.stderr)
    return False


# Many rounds


def growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """The growth of each resource from the first to the second half, without the first tenth."""
    settled = [sample for sample in samples if sample["round"] >= samples[-1]["round"] / 10]
    half = max(len(settled) // 2, 1)
    found = {}
    for name in list(samples[0])[2:]:
        of = min if name == "memory" else max
        first, second = (of(s[name] for s in part) for part in (settled[:half], settled[-half:]))
        found[name] = second - first
    return found


def soak(options: argparse.Namespace, overrides: list[str]) -> int:
    """Train many short rounds; returns the exit status.

    Args:
        options: ``yaml``, ``rounds``, ``every`` (rounds between samples), and ``memory`` (MiB
            that it may grow by).
        overrides: overrides of the yaml.
    """
    from llmfoundry import registry

    from dept.training import arguments as training

    name = f"tmp-soak-{os.getpid()}"
    command = [options.yaml, f"run_name={name}", f"max_duration={options.rounds}ep"]
    command += [f"eval_interval={options.every}ep", f"callbacks.soak.every={options.every}"]
    command.append(f"code_paths=[{Path(__file__).with_name('soak.py')}]")
    try:
        with tempfile.TemporaryDirectory() as temporary:
            tempfile.tempdir = os.environ["TMPDIR"] = temporary
            status = training.main([*command, *SHORT, *overrides])
    finally:
        tempfile.tempdir = None
        shutil.rmtree(Path("runs") / name, ignore_errors=True)
    if status != 0:
        return status
    samples = registry.callbacks.get("soak").samples
    print(table(tuple(samples[0]), *([f"{v:.0f}" for v in s.values()] for s in samples)))
    grown = growth(samples)
    print("growth: " + ", ".join(f"{value:+.1f} {name}" for name, value in grown.items()))
    limits = dict.fromkeys(grown, 0.0) | {"memory": options.memory}
    grew = [name for name, value in grown.items() if value > limits[name]]
    print(f"grew: {', '.join(grew)}" if grew else "nothing grew")
    return int(bool(grew))


def main(arguments: list[str] | None = None) -> int:
    """Run one of the three; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    add = commands.add_parser("kills", help="runs that are killed").add_argument
    add("--workers", type=int, default=1)
    add("--yaml", default="yamls/dept_spec.yaml")
    add("--launcher", action="store_true", help="composer -n W train.py, a minute for each start")
    add("--kills", type=int, default=30)
    add("--seed", type=int, default=0, help="seed of the times of kills")
    add("--window", type=float, default=0.4, help="seconds after the first batch")
    add("--early", type=float, default=0.1, help="fraction of kills before training")
    add("--startup", type=float, help="seconds within which those are drawn")
    add = commands.add_parser("damage", help="a corpus that is damaged").add_argument
    add("--corpus", default="multilingual")
    add("--tries", type=int, default=30, help="of each kind")
    add("--seed", type=int, default=0)
    add = commands.add_parser("soak", help="a thousand short rounds").add_argument
    add("--rounds", type=int, default=1000)
    add("--every", type=int, default=50, help="rounds between samples")
    add("--memory", type=float, default=16.0, help="MiB that it may grow by")
    add("--yaml", default="yamls/dept_spec.yaml")
    for command, parsed in zip((kills, damage, soak), commands.choices.values(), strict=True):
        parsed.set_defaults(run=command)
    options, overrides = parser.parse_known_args(arguments)
    return options.run(options, overrides)


if __name__ == "__main__":
    sys.exit(main())
