"""Every table of a report, from records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial

import pandas as pd

from dept.evaluation.report.answers import answers
from dept.evaluation.report.comparison_tables import comparison_tables, comparisons
from dept.evaluation.report.domains_and_languages import domains_and_languages
from dept.evaluation.report.downstream import downstream
from dept.evaluation.report.first_embeddings import first_embeddings
from dept.evaluation.report.measured import SPREAD, runs_of, text
from dept.evaluation.report.names import BY_SETTING, METRICS, STAGES, TOPICS, label
from dept.evaluation.report.overview import methods, overview
from dept.evaluation.report.run_records import RUN, number, select
from dept.evaluation.report.sent import sent
from dept.evaluation.report.studies import studies
from dept.evaluation.report.table import Table
from dept.evaluation.report.tuning import tuning, tuning_cpt


def tables(records: pd.DataFrame) -> list[Table]:
    """Tables in the order of a report: over all corpora, then of each corpus by topic.

    Args:
        records: as ``run_records.arranged`` gives them.
    """
    every = comparisons(records)
    found = answers(records, every) + methods(records) + overview(every)
    found += domains_and_languages(records)
    for corpus in records["corpus"].unique():
        for comparison in every:
            if comparison.corpus == corpus:
                found += comparison_tables(comparison)
        for make in (downstream, communication, studies, tuning, tuning_cpt):
            found += make(records, corpus)
        for stage in BY_SETTING:
            make = first_embeddings if stage == "embeddings" else partial(study, stage=stage)
            found += make(records, corpus)
        found += setting(records, corpus)
    return found


def communication(records: pd.DataFrame, corpus: str) -> list[Table]:
    """The communication of each method in pre-training.

    Args:
        records: records of all runs.
        corpus: name of the corpus.

    Returns:
        One table; none if no run has a count.
    """
    columns = {
        "parameters_per_step": ("parameters a step", "{:,.0f}", 1),
        "reduction": ("reduction", "{:,.0f} times", 1),
        "exchanged": ("a source in all", "{:,.1f} MB", 1e6),
        "sent_bytes": ("sent", "{:,.1f} MB", 1e6),
        "every_step_bytes": ("with every gradient", "{:,.1f} MB", 1e6),
    }
    rows = []
    for method, of in sent(records, corpus).iterrows():
        texts = (
            "" if pd.isna(of[key]) else form.format(of[key] / unit)
            for key, (_, form, unit) in columns.items()
        )
        rows.append([label(method), *texts, of["runs"]])
    caption = (
        "Means over runs. Parameters a step: what a source gives to the average, spread over its "
        "local steps; reduction: how many times that goes into the whole model. A source in all: "
        "those parameters over all steps, in float32. Sent: what the run's workers sent one "
        "another, counted where it enters the transport; nothing if one worker trained all "
        "sources, blank where it was not counted. With every gradient: what they would have sent "
        "then."
    )
    head = ["method", *(name for name, _, _ in columns.values()), "runs"]
    title = f"{corpus}, what is exchanged"
    return [Table(corpus, "communication", title, caption, head, rows)] if rows else []


_AS_COMPARED = {"pretrain": "as compared", "cpt_random": "as compared, CPT"}


def study(records: pd.DataFrame, corpus: str, stage: str = "study") -> list[Table]:
    """Runs with other settings, named by the plan; of a study below those of the comparison itself.

    Args:
        records: records of all runs.
        corpus: name of the corpus.
        stage: one of ``names.BY_SETTING``.

    Returns:
        One table; none if there are no such runs.
    """
    studied = select(records, corpus, stage)
    compared = select(records, corpus, *(_AS_COMPARED if stage in ("study", "scale") else ()))
    compared = compared.assign(setting=compared["stage"].map(_AS_COMPARED))
    beside = compared.merge(studied[["method", "seed"]].drop_duplicates())
    rows, agree = [], studied["updates"].astype(bool).any()
    for method, of_method in studied.groupby("method", sort=False):
        runs = pd.concat([beside[beside["method"] == method], of_method])
        for name, of in runs.groupby("setting", sort=False):
            given = [_values(of["learning_rate"]), _values(of["sequential"])]
            found = (pd.Series([number(a.get(m)) for a in of["average"]]) for m in METRICS)
            values = [text(v, digits, len(of)) for v, digits in zip(found, (1, 3), strict=True)]
            runs = runs_of(of.set_index(RUN).index)
            seen = [text(v, 3) for v in agreement(of["updates"])] if agree else []
            rows.append([name, label(method), *given, *values, *seen, runs])
    caption = (
        "Averages over sources after pre-training, or after continued pre-training where the name "
        f"says so; lower is better; {SPREAD}. Perplexity may be compared within one tokenizer only."
    )
    head = ["setting", "method", "learning rate", "steps", *METRICS.values()]
    if agree:
        head += ["cosine, early", "late", "norm of mean"]
        caption += (
            " Cosine: between the updates of two sources, mean over pairs in the first and in the "
            "last third of the rounds. Norm of mean: of the outer step, over the mean of the "
            "sources' norms; 1 / sqrt(K) if K updates have nothing in common."
        )
    title = f"{corpus}, {TOPICS[stage][0].lower()}{TOPICS[stage][1:]}"
    return [Table(corpus, stage, title, caption, [*head, "runs"], rows, texts=2)] if rows else []


def agreement(updates: Iterable[Mapping[str, list[float]]]) -> list[pd.Series]:
    """How far updates agree, of each run: cosines in the first and last third, norm of the mean.

    Args:
        updates: as a record has them, empty where a run has none.
    """
    found = []
    for of in updates:
        cosines, ratios = of.get("cosine") or [], of.get("norm_of_mean") or []
        third = -(-len(cosines) // 3)
        ends = (cosines[:third], cosines[len(cosines) - third :], ratios)
        found.append([sum(values) / len(values) if values else math.nan for values in ends])
    return [pd.Series(values, dtype=float) for values in zip(*found, strict=True)]


def setting(records: pd.DataFrame, corpus: str) -> list[Table]:
    """The settings of each run that do not depend on the machine.

    Args:
        records: records of all runs.
        corpus: name of the corpus.

    Returns:
        One table; none if there are no runs.
    """
    rows, parts = [], []
    stages = [stage for stage in STAGES if stage != "downstream"]  # epochs of a task, not rounds
    for stage, of_stage in select(records, corpus, *stages).groupby("stage", sort=False):
        parts += [len(rows)] if rows else []
        for method, runs in of_stage.groupby("method", sort=False):
            drawn = runs.assign(draw=runs["draw"].where(runs["draw"] >= 0).astype("Int64"))
            keys = (
                "seed",
                "draw",
                "learning_rate",
                "rounds",
                "local_steps",
                "sequential",
                "tokens",
            )
            texts = [STAGES[stage], label(method), str(len(runs))]
            rows.append([*texts, *(_values(drawn[key]) for key in keys)])
    caption = (
        "Draws: numbers of the random embeddings that runs start from. Learning rate: its peak. "
        "Steps: sequential ones of a source's training. Tokens: all that a run trained on."
    )
    head = ["stage", "method", "runs", "seeds", "draws", "learning rate", "rounds"]
    head += ["local steps", "steps", "tokens"]
    title = f"{corpus}, runs"
    return [Table(corpus, "setting", title, caption, head, rows, tuple(parts), 2)] if rows else []


def _values(values: pd.Series) -> str:
    """The distinct values among runs."""
    distinct = sorted(values.dropna().unique().tolist())
    texts = [f"{v:,}" if isinstance(v, int) else f"{v:g}" for v in distinct]
    return ", ".join(texts) if len(texts) <= 3 else f"{texts[0]} to {texts[-1]}"
