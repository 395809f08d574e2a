"""The record that a comparison keeps of a finished run: its summary and its curves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dept.evaluation.reproduce.jobs import Job

LOSSES = ("loss", "perplexity", "bits_per_byte")
FINE_TUNED = ("task", "metric", "init", "learning_rate", "examples", "baselines", "best", "test")
FINE_TUNED += ("transfer", "history", "timing")


def record(job: Job, folder: Path) -> dict[str, Any]:
    """One run, as ``results/runs/<run>.json`` holds it.

    Args:
        job: what was run.
        folder: ``runs/<run_name>``, with ``summary.json``, ``metrics.jsonl``, ``config.yaml``.
    """
    summary = json.loads((folder / "summary.json").read_text())
    if job.stage == "downstream":
        return _of_job(job) | {key: summary[key] for key in FINE_TUNED}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    with open(folder / "metrics.jsonl") as file:
        lines = [json.loads(line) for line in file]
    kept = ("tokens", "steps", "rounds", "local_steps", "sources", "held_out", "average")
    return {
        **_of_job(job),
        "learning_rate": float(config["optimizer"]["lr"]),
        **{key: summary[key] for key in kept},
        "communication": summary["communication"],
        "timing": summary["timing"],
        "curves": curves(lines, summary),
        "norms": norms(lines, summary),
        "updates": agreement(lines),
    }


def _of_job(job: Job) -> dict[str, Any]:
    keys = ("corpus", "stage", "method", "setting", "baseline", "seed", "draw", "source", "after")
    return {"run": job.name, **{key: getattr(job, key) for key in keys}}


def curves(lines: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Losses of each evaluation, by tokens and by sequential steps trained before it.

    Args:
        lines: of ``metrics.jsonl``.
        summary: of the same run.
    """
    batches = max(line["batch"] for line in lines)
    evaluated = [line for line in lines if "eval/average/loss" in line]
    done = [line["batch"] / batches for line in evaluated]
    names = [*summary["sources"], *summary["held_out"]]
    sequential = summary["rounds"] * summary["local_steps"]
    return {
        "tokens": [round(summary["tokens"] * part) for part in done],
        "steps": [round(sequential * part) for part in done],
        "average": {key: [line[f"eval/average/{key}"] for line in evaluated] for key in LOSSES},
        "sources": {
            name: {"perplexity": [line.get(f"eval/{name}/perplexity") for line in evaluated]}
            for name in names
        },
    }


def agreement(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[float]] | None:
    """How far the updates of sources agree, by round; ``None`` of a run without rounds.

    Args:
        lines: lines of ``metrics.jsonl``.

    Returns:
        ``cosine``, the mean over pairs of sources, and ``norm_of_mean``, the norm of the outer step
        over the mean of the sources' norms: 1 if all updates are the same, and with averages of K
        updates that have nothing in common 1 / sqrt(K).
    """
    found: dict[str, list[float]] = {"cosine": [], "norm_of_mean": []}
    for line in lines:
        pairs = [value for key, value in line.items() if key.startswith("dept/cosine/")]
        single = [v for key, v in line.items() if re.fullmatch(r"dept/[^/]+/update_norm", key)]
        if pairs and sum(single):
            found["cosine"].append(sum(pairs) / len(pairs))
            found["norm_of_mean"].append(line["dept/update_norm"] / sum(single) * len(single))
    return found if found["cosine"] else None


def norms(lines: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Norms by sequential step of one source's training; the mean over sources of a round.

    ``None`` if they were not measured.

    Args:
        lines: lines of ``metrics.jsonl``, of which at least one is needed; each has its ``batch``.
        summary: content of ``summary.json``, with ``rounds`` and ``local_steps``.

    Returns:
        ``steps``, and for each of them ``activations``, ``parameters`` and ``embedding``.
    """
    steps, batches = summary["local_steps"], max(line["batch"] for line in lines)
    per_round = batches // summary["rounds"]
    at: dict[int, list[Mapping[str, Any]]] = {}
    for line in lines:
        if "norm/activations" in line:
            round_index, in_round = divmod(line["batch"] - 1, per_round)
            at.setdefault(round_index * steps + in_round % steps + 1, []).append(line)
    if not at:
        return None
    return {
        "steps": sorted(at),
        **{
            name: [sum(n[key] for n in at[s]) / len(at[s]) for s in sorted(at)]
            for name, key in (
                ("activations", "norm/activations"),
                ("parameters", "norm/body"),
                ("embedding", "norm/embedding"),
            )
        },
    }
