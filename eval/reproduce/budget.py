"""What the runs of a plan cost: tokens, and core-hours at a measured speed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dept.config import extends
from dept.config.corpus_checks import corpus_and_sources, evaluates_held_out
from dept.config.options import options_of
from dept.data.corpus import GLOBAL
from dept.errors import ConfigError
from dept.evaluation.reproduce.jobs import Job
from dept.method.variants import Vocabulary

FORWARD = 1 / 3  # cost of a token of validation: no backward pass, which costs two forward ones


@dataclass(frozen=True)
class Tokens:
    """Tokens of a run.

    Attributes:
        trained: that it trains on, a token that is read twice counted twice.
        evaluated: of validation, over all evaluations.
    """

    trained: int
    evaluated: int

    def core_hours(self, speed: float, cost: float = 1.0) -> float:
        """Hours of one core.

        Args:
            speed: tokens that one core trains on in a second.
            cost: of a token, beside one at that speed.
        """
        return (self.trained + FORWARD * self.evaluated) * cost / speed / 3600


def tokens_of(config: Mapping[str, Any]) -> Tokens:
    """The tokens of a run of ``train.py``.

    Args:
        config: its resolved yaml, with durations in ``ep`` or ``ba``; its corpus is prepared.

    Raises:
        DataError: it is not.
    """
    dept, loader = options_of(config)
    corpus, sources = corpus_and_sources(loader, dept)
    own = dept is not None and dept.sharing.vocabulary is Vocabulary.OWN
    if dept is None:
        epoch = loader.epoch_batches
    else:
        epoch = (dept.sources_per_round or len(sources)) * dept.local_steps
    batches = _batches(config["max_duration"], epoch)
    sample = config["max_seq_len"] * config["global_train_batch_size"]

    metrics = (config.get("callbacks") or {}).get("source_metrics") or {}
    often = _batches(config["eval_interval"], epoch)
    rarely = _batches(metrics.get("held_out_interval") or config["eval_interval"], epoch)
    if given := config.get("eval_loaders"):
        intervals = {entry["source"]: often for entry in given}
    else:
        held_out = corpus.held_out if evaluates_held_out(dept) else ()
        intervals = dict.fromkeys(held_out, rarely) | dict.fromkeys(sources, often)
    first, part = bool(config.get("eval_first")), config.get("eval_subset_num_batches", -1)
    most = math.inf
    if part > 0:
        most = part * config["device_eval_batch_size"] * config["max_seq_len"]
    evaluated = 0
    for name, interval in intervals.items():
        validation = corpus.source(name, name if own else GLOBAL).splits["val"]
        evaluated += (math.ceil(batches / interval) + first) * min(validation.tokens, most)
    return Tokens(batches * sample, evaluated)


def estimate(jobs: Sequence[Job], speed: float) -> pd.DataFrame:
    """The cost of each run of ``train.py``; fine-tuning is not estimated.

    Args:
        jobs: the runs.
        speed: tokens that one core trains on in a second.

    Returns:
        A row a job, with ``run``, ``part``, ``tokens`` and ``core_hours``; nan if not estimated.
    """
    rows = []
    for job in jobs:
        row = {"run": job.name, "part": job.part, "tokens": math.nan, "core_hours": math.nan}
        if job.stage != "downstream":
            tokens = tokens_of(extends.resolve(extends.load(job.yaml, job.overrides)))
            row |= {"tokens": tokens.trained, "core_hours": tokens.core_hours(speed, job.cost)}
        rows.append(row)
    return pd.DataFrame(rows)


def by_part(costs: pd.DataFrame) -> pd.DataFrame:
    """Runs, tokens and core-hours of each part in order, and the core-hours up to its end.

    Args:
        costs: of the runs, as :func:`estimate` gives them, with ``finished``.
    """
    groups = costs.groupby("part", sort=False)
    table = groups[["tokens", "core_hours"]].sum()
    table.insert(0, "runs", groups.size())
    table.insert(1, "finished", groups["finished"].sum())
    return table.assign(up_to_here=table["core_hours"].cumsum())


def _batches(duration: Any, epoch: int) -> int:
    """Batches of a duration such as ``10ep`` or ``225ba``, of ``epoch`` batches an epoch."""
    found = re.fullmatch(r"(\d+)(ep|ba)", str(duration))
    if found is None:
        raise ConfigError(f"{duration!r} cannot be estimated: write a duration as 10ep or 225ba")
    return int(found[1]) * (epoch if found[2] == "ep" else 1)
