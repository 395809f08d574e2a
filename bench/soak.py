"""Many short rounds, and whether the resources of the process grow: `make soak`.

    python bench/soak.py [--rounds 1000] [--every 50] [--memory 16] [key=value ...]

It compares the second half of the rounds with the first half, without the first tenth. The least
memory of a sample may grow by `--memory` MiB (the greatest depends on evaluations), other resources
must not grow.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from markdown_table import markdown

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("PYTHONWARNINGS", "ignore:pkg_resources is deprecated")

SHORT = [
    "train_loader.sources=[en,it]",
    "variables.local_steps=2",
    "variables.worker_batch=1",
    "save_interval=20ep",
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_layers=2",
]


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


def main(arguments: list[str] | None = None) -> int:
    """Train many short rounds; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--every", type=int, default=50, help="rounds between samples")
    parser.add_argument("--memory", type=float, default=16.0, help="MiB that it may grow by")
    parser.add_argument("--yaml", default="yamls/dept_spec.yaml")
    options, overrides = parser.parse_known_args(arguments)
    from llmfoundry import registry

    from dept.training import arguments as training

    name = f"tmp-soak-{os.getpid()}"
    command = [options.yaml, f"run_name={name}", f"max_duration={options.rounds}ep"]
    command += [f"eval_interval={options.every}ep", f"callbacks.soak.every={options.every}"]
    command.append(f"code_paths=[{Path(__file__).with_name('soak_callback.py')}]")
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
    print(markdown(tuple(samples[0]), *([f"{v:.0f}" for v in s.values()] for s in samples)))
    grown = growth(samples)
    print("growth: " + ", ".join(f"{value:+.1f} {name}" for name, value in grown.items()))
    limits = dict.fromkeys(grown, 0.0) | {"memory": options.memory}
    grew = [name for name, value in grown.items() if value > limits[name]]
    print(f"grew: {', '.join(grew)}" if grew else "nothing grew")
    return int(bool(grew))


if __name__ == "__main__":
    sys.exit(main())
