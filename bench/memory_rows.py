"""The row of `make bench` about memory: the peak of a worker against the cost model."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import fits
from measure import Result, Row, Setting

WIDE = ["model.d_model=512", "model.n_layers=6", "variables.worker_batch=1"]
"""A body whose parameters need much more memory than one sequence of activations."""

CASES = {
    "STD": ("yamls/std.yaml", 1, ["variables.mixture_batch=1"]),
    "GLOB, a source, reset": ("yamls/dept_glob.yaml", 1, ["algorithms.dept.inner_state=reset"]),
    "TRIM, nesterov": (
        "yamls/dept_trim.yaml",
        2,
        ["algorithms.dept.outer_optimizer={name: nesterov}"],
    ),
    "SPEC, three slots": ("yamls/dept_spec.yaml", 3, []),
}
"""Yaml, sources and overrides of each line."""


def memory(setting: Setting) -> list[Result]:
    """How far the peak is from the cost model, in percent, in trainings of two rounds on the CPU.

    Every allocation of torch is counted by its profiler. On a GPU `bench/gpu.sh` measures the peak.

    Args:
        setting: what is measured on.
    """
    fits.prepare()
    results = []
    for name, (experiment, count, more) in CASES.items():
        sources = f"train_loader.sources=[{','.join(setting.sources[:count])}]"
        overrides = [
            *setting.overrides,
            sources,
            *WIDE,
            "variables.local_steps=2",
            "max_duration=2ep",
        ]
        found = _run(experiment, [*overrides, "eval_interval=0", *more])
        results.append(Result(name, [100 * abs(found["peak"] / found["estimated"] - 1)], found))
    return results


def _run(experiment: str, overrides: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "found.json")
        saves = f"save_folder={folder}/checkpoints"  # which local models are kept for
        own = [*fits.arguments(experiment, folder, [*overrides, saves]), "code_paths=[]"]
        fits.run(_measure, own, str(file))
        return json.loads(file.read_text())


def _measure(given: list[str], file: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from torch.profiler import ProfilerActivity, profile

    from dept.training.arguments import main

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        status = main(given)
    if status:
        raise RuntimeError(f"the training ended with status {status}")
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    Path(file).write_text(json.dumps({"peak": peak, **_estimated(given)}))


def _estimated(given: list[str]) -> dict[str, float]:
    from dept.config import extends
    from dept.costs import machine
    from dept.training.on_machine import choose

    config = extends.resolve(extends.load(Path(given[0]), given[1:]))
    choose(config)
    sources = len(config["train_loader"]["sources"])
    found = machine.estimate(config, slots=sources, sources=sources, workers_here=1)
    parts = ("training", "dept", "kept", "activations")
    estimated = found.needed - machine.LIBRARIES
    return {"estimated": estimated, **{part: getattr(found, part) for part in parts}}


ROWS = [
    Row("memory", "difference of a worker's peak memory", "the cost model", "<= 5 %", memory),
]
