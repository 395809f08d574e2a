"""A run that is killed again and again, against one that is not: `make faults`.

    python bench/kills.py [--workers 2] [--kills 30] [--yaml yamls/dept_spec.yaml] [key=value ...]

Trains an experiment once in peace. Then trains it under another name, kills its processes at random
moments and gives the same command again, until it has been killed often enough and has come to its
end. Told are the kinds of death, how many batches each cost, and whether what was learned, and
`metrics.jsonl`, are the same to the last bit.

Processes are forked from one that has imported everything, in place of the launcher: they start in
a moment, and die as any other.
"""

import argparse
import atexit
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("PYTHONWARNINGS", "ignore:pkg_resources is deprecated")

IMPORTS = ["train", "callbacks.registration", "dept.registration", "llmfoundry.command_utils"]
DEATHS = ("SIGKILL to a rank", "SIGKILL to the launcher", "SIGTERM to all", "SIGKILL in a save")
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
class Outcome:
    """What a killed run went through."""

    deaths: Counter = field(default_factory=Counter)
    """By kind."""

    lost: dict[str, list[int]] = field(default_factory=dict)
    """Batches that were trained and had to be trained again, at each death, by kind."""

    differences: list[str] = field(default_factory=list)
    """Names of what is not the same as in the run that was left in peace."""


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--yaml", default="yamls/dept_spec.yaml")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options, overrides = parser.parse_known_args(arguments)
    outcome = compare(
        options.yaml, [*SMALL, *overrides], options.workers, options.kills, options.seed
    )
    for death in DEATHS:
        lost = outcome.lost.get(death, [])
        print(
            f"{death}: {outcome.deaths[death]} times, at most {max(lost, default=0)} batches lost"
        )
    print(f"differences: {', '.join(outcome.differences) or 'none'}")
    return 1 if outcome.differences else 0


def compare(
    yaml: str, overrides: list[str], workers: int, kills: int, seed: int, root: Path = Path()
) -> Outcome:
    """Train in peace, and under fire, and compare.

    Args:
        yaml: the experiment.
        overrides: of it.
        workers: processes that train sources side by side.
        kills: how often to kill.
        seed: of the moments and kinds.
        root: folder that holds ``runs/``.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    runs = {name: root / "runs" / f"tmp-kills-{os.getpid()}-{name}" for name in ("peace", "fire")}
    try:
        for name, folder in runs.items():
            command = [yaml, f"run_name={folder.name}", *overrides]
            if name == "peace":
                job = Job(context, command, workers)
                if job.wait() != 0:
                    raise RuntimeError(f"the run in peace failed: see {job.log}")
            else:
                outcome = under_fire(context, command, folder, workers, kills, random.Random(seed))
        outcome.differences = differences(runs["peace"], runs["fire"])
        return outcome
    finally:
        for folder in runs.values():
            shutil.rmtree(folder, ignore_errors=True)


def under_fire(
    context, command: list[str], folder: Path, workers: int, kills: int, draw: random.Random
) -> Outcome:
    """Kill a run ``kills`` times, and let it come to its end."""
    outcome, seconds = Outcome(), 0.4
    while (done := sum(outcome.deaths.values())) < kills:
        job = Job(context, command, workers)
        death = DEATHS[done % len(DEATHS)]
        job.wait_until_training(folder)
        if death == "SIGKILL in a save":
            job.wait_until_saving(folder)
        else:
            time.sleep(draw.uniform(0, seconds))
        if job.has_ended:
            raise RuntimeError(
                f"the run came to its end, or failed, after {done} kills: let it be longer, or "
                f"see {job.log}"
            )
        job.die(death, draw)
        reached = batch_reached(folder)
        kept = newest_checkpoint(folder)
        outcome.deaths[death] += 1
        outcome.lost.setdefault(death, []).append(max(reached - kept, 0))
    job = Job(context, command, workers)
    if job.wait() != 0:
        raise RuntimeError(f"the last start failed: see {job.log}")
    return outcome


class Job:
    """A launcher and its ranks."""

    def __init__(self, context, command: list[str], workers: int) -> None:
        name = next(part for part in command if part.startswith("run_name="))[9:]
        self.log = Path("runs") / f"{name}.log"
        self.log.parent.mkdir(exist_ok=True)
        self.pids = context.Array("i", workers)
        self.process = context.Process(target=_launch, args=(command, self.pids, str(self.log)))
        self.process.start()

    @property
    def has_ended(self) -> bool:
        return self.process.exitcode is not None

    def wait(self) -> int:
        """Let it come to its end; the exit status."""
        self.process.join()
        return self.process.exitcode

    def wait_until_training(self, folder: Path) -> None:
        """Until the first rank of this start has written a metric, or its end."""
        before = _changed(folder)
        while _changed(folder) == before and not self.has_ended:
            time.sleep(0.005)

    def wait_until_saving(self, folder: Path) -> None:
        """Until a file is being written, or the end."""
        while not self.has_ended:
            if next((folder / "checkpoints").rglob(".writing-*"), None) is not None:
                return

    def die(self, death: str, draw: random.Random) -> None:
        """Kill it, and wait until nothing is left of it."""
        ranks = [pid for pid in self.pids if pid]
        if death == "SIGTERM to all":
            for pid in ranks:
                _signal(pid, signal.SIGTERM)
        elif death == "SIGKILL to the launcher":
            _signal(self.process.pid, signal.SIGKILL)
        elif death == "SIGKILL in a save":
            _signal(ranks[0], signal.SIGKILL)
        else:
            _signal(draw.choice(ranks), signal.SIGKILL)
        self.process.join()
        while any(map(_runs, ranks)):
            time.sleep(0.02)


def _launch(command: list[str], pids, log: str) -> None:
    """As composer's launcher: starts ranks, ends all when one dies."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    workers = len(pids)
    for rank in range(workers):
        pid = os.fork()
        if pid == 0:
            place = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0}
            place |= {"WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in place.items()})
            _rank(command)
        pids[rank] = pid
    left, status = set(pids), 0
    while left:
        pid, ended = os.wait()
        left.discard(pid)
        code = os.waitstatus_to_exitcode(ended)
        if code != 0 and status == 0:
            status = abs(code)
            for other in left:
                _signal(other, signal.SIGTERM)
    os._exit(status)


def _rank(command: list[str]) -> None:
    code = 1
    try:
        import train

        code = train.main(command)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def batch_reached(folder: Path) -> int:
    """The last batch of the first worker that ``metrics.jsonl`` tells of."""
    file = folder / "metrics.jsonl"
    whole = file.read_text().split("\n")[:-1] if file.is_file() else []
    return json.loads(whole[-1])["batch"] if whole else 0


def newest_checkpoint(folder: Path) -> int:
    """The batch of the newest checkpoint that is whole."""
    from dept.durable import is_whole
    from dept.run_folder import numbered_checkpoints

    found = reversed(numbered_checkpoints(folder / "checkpoints"))
    return next((batch for _, batch, path in found if is_whole(path)), 0)


def differences(peace: Path, fire: Path) -> list[str]:
    """What two finished runs do not have in common: tensors, metrics, figures of the summary."""
    import torch

    from dept.trained import read_trained

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


def _changed(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _runs(pid: int) -> bool:
    """Whether a process is there, and not only its entry in the table."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
