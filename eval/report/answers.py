"""The three questions that a report opens with: does it help, what does it cost, what to set.

Every number is one that a table below shows in full; nothing is measured for these alone.
"""

from __future__ import annotations

import math

import pandas as pd

from dept.evaluation.report.compare import AVERAGE, Comparison
from dept.evaluation.report.comparison_tables import percent, text_of
from dept.evaluation.report.first_embeddings import on
from dept.evaluation.report.measured import SPREAD, runs_of, text
from dept.evaluation.report.names import BUDGETS, BY_SETTING, METRICS, label
from dept.evaluation.report.run_records import RUN, number, select
from dept.evaluation.report.sent import sent
from dept.evaluation.report.table import Table

CLEAR = 2.0  # standard errors from no improvement, at which an answer is yes or no
CHOSEN = {
    "tuning": "learning rate",
    "pilot": "local steps, batch, rate",
    "embeddings": "first embedding",
    "study": "other settings",
}
"""What the stages that try settings choose."""


def answers(records: pd.DataFrame, every: list[Comparison]) -> list[Table]:
    """The tables of the three questions; one that has no runs yet is empty, and says so.

    Args:
        records: as ``run_records.arranged`` gives them.
        every: the comparisons of methods.
    """
    return [_help(every), _cost(records), _settings(records)]


def answer(ours: pd.Series, theirs: pd.Series) -> str:
    """Whether one method is better than another, from the runs that both have.

    Args:
        ours: float[runs], lower is better; indexed by run.
        theirs: float[runs], indexed by run.

    Returns:
        ``yes`` or ``no`` if the mean improvement is more than ``CLEAR`` standard errors from 0,
        otherwise ``not clear``; with the number of pairs and of seeds, since pairs of one seed
        share their bodies. A single pair has no answer.
    """
    gains = (1 - ours / theirs).dropna()
    if len(gains) < 2:
        return "one pair" if len(gains) else "no pairs"
    seeds = gains.index.get_level_values("seed").nunique()
    of = f"({len(gains)} pairs, {seeds} seed{'s' * (seeds > 1)})"
    if abs(gains.mean()) <= CLEAR * gains.sem():
        return f"not clear {of}"
    return f"{'yes' if gains.mean() > 0 else 'no'} {of}"


def _help(every: list[Comparison]) -> Table:
    rows = []
    for comparison in every:
        best = [comparison.best(AVERAGE, baseline) for baseline in (True, False)]
        if not all(best):
            continue
        (baseline, theirs), (dept, ours) = best
        digits = comparison.digits(AVERAGE)
        rows.append(
            [
                comparison.corpus,
                comparison.name,
                BUDGETS.get(comparison.budget, ""),
                text_of(comparison),
                f"{label(baseline)} {text(theirs, digits)} ({runs_of(theirs.index)})",
                f"{label(dept)} {text(ours, digits)} ({runs_of(ours.index)})",
                percent(100 * (1 - ours.mean() / theirs.mean())),
                answer(ours, theirs),
            ]
        )
    caption = (
        "The best baseline against the best method of DEPT, by average over sources: perplexity "
        "after continued pre-training and in plasticity, bits per byte after pre-training; lower "
        f"is better. {SPREAD.capitalize()}. Helps: yes or no if the mean improvement in pairs of "
        f"runs of equal seed and random embedding is more than {CLEAR:g} standard errors from 0. "
        "Both methods are picked by these averages, and pairs of one seed share their bodies: an "
        "answer from one seed is a hint."
    )
    head = ["corpus", "stage", "baselines", "text", "best baseline", "best DEPT"]
    head += ["improvement", "helps"]
    return _table("help", "Whether DEPT is better, by comparison", caption, head, rows, texts=6)


def _cost(records: pd.DataFrame) -> Table:
    rows = []
    for corpus in records["corpus"].unique():
        here = select(records, corpus, "pretrain")
        counted = sent(records, corpus)
        # Bodies of one source each are one run, and their tokens are added up.
        spent = here.groupby(["method", *RUN], sort=False).agg(
            {"tokens": "sum", "sequential": "max"}
        )
        means = spent.astype(float).groupby("method", sort=False).mean()
        for method, of in means.iterrows():
            link = counted.loc[method] if method in counted.index else {}
            parameters, reduction = (
                _count(link.get(key)) for key in ("parameters_per_step", "reduction")
            )
            tokens, steps = f"{of['tokens'] / 1e6:,.1f}", _count(of["sequential"])
            runs = runs_of(spent.xs(method).index)
            rows.append([corpus, label(method), steps, tokens, parameters, reduction, runs])
    caption = (
        "Pre-training. Steps: sequential ones. Tokens: of all sources together, in millions; what "
        "a run computes. Exchanged: parameters that a source communicates a step. Reduction: how "
        "many times that goes into the whole model, which exchanging every gradient would send. "
        "Times and memory are the machine's, and stand in the records."
    )
    head = ["corpus", "method", "steps", "million tokens", "exchanged", "reduction", "runs"]
    return _table("cost", "What a method computes and exchanges", caption, head, rows, texts=2)


def _settings(records: pd.DataFrame) -> Table:
    rows = []
    for corpus in records["corpus"].unique():
        for stage, what in CHOSEN.items():
            tried = select(records, corpus, stage)
            name = (
                tried["setting"]
                if stage in BY_SETTING
                else tried["learning_rate"].map("{:g}".format)
            )
            bits = pd.Series(
                [number(a.get("bits_per_byte")) for a in tried["average"]], tried.index
            )
            # Runs are judged beside their like: from a body or not, and over as many sources.
            over = tried["sources"].map(on)
            tried = tried.assign(name=name, bits=bits, starts=tried["after"].notna(), over=over)
            groups = tried.groupby(["method", "starts", "over"], sort=False)
            for (method, starts, over), of in groups:
                means = of.groupby("name", sort=False)["bits"].mean().sort_values(kind="stable")
                means = means[means.map(math.isfinite)]
                if len(means) < 2:
                    continue
                first, second = (
                    f"{name} {text(of['bits'][of['name'] == name], 3)}" for name in means.index[:2]
                )
                runs = runs_of(of[of["name"] == means.index[0]].set_index(RUN).index)
                after = f", {over}" if stage == "embeddings" else ", continued" if starts else ""
                rows.append([corpus, what + after, label(method), first, second, len(means), runs])
    caption = (
        f"The best and the second best of the settings tried, by {METRICS['bits_per_byte']}, lower "
        "is better; all of them stand in the tables of their corpus. Settings between which the "
        "difference is within the spread do not differ."
    )
    head = ["corpus", "what", "method", "best", "second", "tried", "runs of the best"]
    rows = [[*row[:5], str(row[5]), row[6]] for row in rows]
    return _table("set", "The best of what was tried", caption, head, rows, texts=5)


def _table(topic: str, title: str, caption: str, head: list, rows: list, texts: int) -> Table:
    caption = caption if rows else f"No run that answers this has finished. {caption}"
    return Table("", topic, title, caption, head, rows, texts=texts)


def _count(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:,.0f}"
