"""A thousand short rounds, and what the process holds meanwhile: `make soak`.

    python bench/soak.py [--rounds 1000] [--every 50] [--memory 16] [--yaml FILE] [key=value ...]

Trains with `train.py`, evaluates and saves now and then, and prints at the end how much
memory the process holds (RSS), how many files it has open, its mappings of /dev/shm, threads, child
processes, and what is in its temporary folder. The first tenth of the rounds apart, the second half
is compared with the first. Fails if the least memory of a sample is more by `--memory` MiB (the
most depends on whether it was taken in an evaluation), or the most of any of the others at all.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONWARNINGS", "ignore:pkg_resources is deprecated")

import psutil
from composer.core import Callback, State
from composer.loggers import Logger

from dept.training import command as training

SMALL = [
    "train_loader.sources=[en,it]",
    "variables.local_steps=2",
    "variables.worker_batch=1",
    "save_interval=20ep",
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_layers=2",
]


@dataclass(frozen=True)
class Sample:
    """What the process holds."""

    round: int
    seconds: float
    memory: float  # MiB
    files: int
    shared: int
    threads: int
    children: int
    temporary: int

    @classmethod
    def take(cls, round_index: int, began: float) -> "Sample":
        """Now."""
        here = psutil.Process()
        return cls(
            round_index,
            time.monotonic() - began,
            here.memory_info().rss / 2**20,
            here.num_fds(),
            sum(m.path.startswith("/dev/shm/") for m in here.memory_maps(grouped=False)),
            here.num_threads(),
            len(here.children(recursive=True)),
            sum(1 for _ in Path(tempfile.gettempdir()).rglob("*")),
        )


class Soak(Callback):
    """Takes a sample every few rounds, after the checkpoint."""

    samples: list[Sample]

    def __init__(self, every: int) -> None:
        self.every, self.began = every, time.monotonic()
        Soak.samples = []

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        if state.timestamp.epoch.value % self.every == 0:
            Soak.samples.append(Sample.take(state.timestamp.epoch.value, self.began))


def growth(samples: list[Sample]) -> dict[str, float]:
    """How much more of each there is in the second half, the first tenth of the rounds apart."""
    settled = [sample for sample in samples if sample.round >= samples[-1].round / 10]
    half = max(len(settled) // 2, 1)
    first, second = settled[:half], settled[-half:]
    found = {"memory": min(s.memory for s in second) - min(s.memory for s in first)}
    for name in ("files", "shared", "threads", "children", "temporary"):
        found[name] = max(getattr(s, name) for s in second) - max(getattr(s, name) for s in first)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the soak; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--every", type=int, default=50, help="rounds between samples")
    parser.add_argument("--memory", type=float, default=16.0, help="MiB that it may grow by")
    parser.add_argument("--yaml", default="yamls/dept_spec.yaml")
    options, overrides = parser.parse_known_args(arguments)

    from llmfoundry import registry

    registry.callbacks.register("soak", func=Soak)
    name = f"tmp-soak-{os.getpid()}"
    command = [options.yaml, f"run_name={name}", f"max_duration={options.rounds}ep"]
    command += [f"eval_interval={options.every}ep", f"callbacks.soak.every={options.every}"]
    try:
        with tempfile.TemporaryDirectory() as temporary:
            tempfile.tempdir = os.environ["TMPDIR"] = temporary
            status = training.main([*command, *SMALL, *overrides])
    finally:
        tempfile.tempdir = None
        shutil.rmtree(Path("runs") / name, ignore_errors=True)
    if status != 0:
        return status
    print("| " + " | ".join(field.name for field in fields(Sample)) + " |")
    print("|" + "---:|" * len(fields(Sample)))
    for sample in Soak.samples:
        print("| " + " | ".join(f"{value:.0f}" for value in astuple(sample)) + " |")
    grown = growth(Soak.samples)
    print("growth: " + ", ".join(f"{value:+.1f} {name}" for name, value in grown.items()))
    others = [name for name, value in grown.items() if name != "memory" and value > 0]
    if grown["memory"] > options.memory:
        others.append(f"memory, by more than {options.memory:.0f} MiB")
    print(f"grew: {', '.join(others)}" if others else "nothing grew")
    return 1 if others else 0


if __name__ == "__main__":
    sys.exit(main())
