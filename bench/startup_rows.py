"""Rows of `make bench` about starts: the first step of a run, and commands that should be quick."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fits
import yaml
from measure import REPOSITORY, Result, Row, Setting, alternate, run

GLOB, SPEC = "yamls/dept_glob.yaml", "yamls/dept_spec.yaml"
LLM_FOUNDRY = str(Path(sys.executable).with_name("llmfoundry"))


def first_step(setting: Setting) -> list[Result]:
    """Both commands with all their imports, from their start to the end of the first step.

    Args:
        setting: what is measured on.
    """
    sources = setting.sources[:1]
    overrides = [*setting.overrides, f"train_loader.sources=[{sources[0]}]", "eval_interval=0"]
    overrides += ["variables.local_steps=1", "max_duration=1ep"]
    config = fits.plain_config(GLOB, overrides, setting.shards(sources), 1)

    def step(command: Callable[[str, str], list[str]]) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            began = fits.now()
            run(command(folder, f"{folder}/clock.json"))
            found = json.loads(Path(folder, "clock.json").read_text())
        return {"wall": found["ended"][0] - began, "cpu": found["first_cpu"]}

    def ours(folder: str, file: str) -> list[str]:
        arguments = fits.arguments(GLOB, folder, overrides)
        return [sys.executable, "train.py", *arguments, f"callbacks.clock.path={file}"]

    def plain(folder: str, file: str) -> list[str]:
        clocked: dict[str, Any] = {**config, "callbacks": {"clock": {"path": file}}}
        Path(folder, "plain.yaml").write_text(yaml.safe_dump(clocked))
        return [LLM_FOUNDRY, "train", f"{folder}/plain.yaml"]

    mine, theirs = alternate(lambda: step(ours), lambda: step(plain), times=setting.times)
    return [
        Result(
            name,
            [a[kind] - b[kind] for a, b in zip(mine, theirs, strict=True)],
            {side: [f[kind] for f in of] for side, of in (("ours", mine), ("against", theirs))},
        )
        for kind, name in (("wall", "wall-clock time"), ("cpu", "CPU time"))
    ]


def cpu_of(*command: str, corpus: bool = False) -> Callable[[Setting], list[Result]]:
    """Measure the CPU time of a command.

    Args:
        command: arguments of Python.
        corpus: whether it needs the overrides that name the corpus.
    """

    def measure(setting: Setting) -> list[Result]:
        whole = [sys.executable, *command, *(setting.overrides if corpus else ())]
        spent = [run(whole)[1] for _ in range(setting.times)]
        raw = {"wall_seconds": [one.wall for one in spent]}
        return [Result("", [one.cpu for one in spent], raw)]

    return measure


def list_of_runs(setting: Setting) -> list[Result]:
    """Measure the CPU time of the list of `reproduce`, for its own plan on one corpus.

    Args:
        setting: what is measured on.
    """
    plan = yaml.safe_load((REPOSITORY / "eval/reproduce.yaml").read_text())
    plan = {key: plan[key] for key in ("seeds", "methods", "continued")}
    plan["corpora"] = {setting.corpus: {"unseen": setting.sources[:1]}}
    for method in plan["methods"].values():
        method.pop("corpora", None)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(plan, file)
        file.flush()
        command = [sys.executable, "-m", "dept.evaluation.reproduce", "--list"]
        command += ["--plan", file.name]
        spent = [run(command, setting.root)[1] for _ in range(setting.times)]
    raw = {"wall_seconds": [one.wall for one in spent]}
    return [Result("", [one.cpu for one in spent], raw)]


COSTS = ("-m", "dept.costs", "yamls/mc4/1b_spec_opt.yaml", "yamls/mc4/1b_std.yaml")
ROWS = [
    Row(
        "first-step",
        "seconds from the start of train.py to the end of the first step, GLOB",
        "llm-foundry's train (difference)",
        "<= 2 s",
        first_step,
    ),
    *(
        Row(name, f"CPU time of {title}", "a limit", goal, measure)
        for name, title, goal, measure in (
            ("cpu-help", "train.py --help", "<= 1 s", cpu_of("train.py", "--help")),
            (
                "cpu-check",
                "train.py --check",
                "<= 5 s",
                cpu_of("train.py", "--check", SPEC, corpus=True),
            ),
            ("cpu-costs", "python -m dept.costs for two yamls", "<= 1 s", cpu_of(*COSTS)),
            ("cpu-reproduce", "the list of reproduce", "<= 2 s", list_of_runs),
            (
                "cpu-prepare",
                "prepare.py --help",
                "<= 1 s",
                cpu_of("data_prep/prepare.py", "--help"),
            ),
        )
    ),
]
