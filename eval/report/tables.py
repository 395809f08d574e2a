"""Every table of a report, from records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dept.evaluation.report.comparison_tables import comparison_tables, comparisons
from dept.evaluation.report.downstream import downstream
from dept.evaluation.report.measured import SPREAD, averaged
from dept.evaluation.report.names import METRICS, STAGES, label
from dept.evaluation.report.overview import methods, overview
from dept.evaluation.report.run_records import Record, by_method, corpora, select, sequential_steps
from dept.evaluation.report.sent import sent
from dept.evaluation.report.table import Cell, Table, plain
from dept.evaluation.report.tuning import tuning, tuning_cpt


def tables(records: list[Record]) -> list[Table]:
    """Tables in the order of a report: over all corpora, then of each corpus by topic.

    Args:
        records: in the order of ``run_records.arranged``.
    """
    every = comparisons(records)
    found = methods(records) + overview(every)
    for corpus in corpora(records):
        for comparison in every:
            if comparison.corpus == corpus:
                found += comparison_tables(comparison)
        for make in (downstream, communication, tuning, tuning_cpt, study, setting):
            found += make(records, corpus)
    return found


def communication(records: list[Record], corpus: str) -> list[Table]:
    """What each method exchanges in pre-training."""
    rows = [
        [
            Cell(label(method)),
            Cell("" if of.per_step is None else f"{of.per_step:,.0f}"),
            Cell("" if of.reduction is None else f"{of.reduction:,.0f} times"),
            *(Cell(_megabytes(value)) for value in (of.exchanged, of.counted, of.every_step)),
        ]
        for method, of in sent(records, corpus).items()
    ]
    caption = (
        "Parameters a step: what a source gives to the average, spread over its local "
        "steps; reduction: how many times that goes into the whole model. A source in all: those "
        "parameters over all steps, in float32. Sent: what the run's workers sent one another, "
        "counted where it enters the transport; nothing if one worker trained all sources, "
        "blank where it was not counted. With every gradient: what they would have sent then."
    )
    head = ["method", "parameters a step", "reduction", "a source in all", "sent"]
    head += ["with every gradient"]
    return plain(corpus, "communication", "what is exchanged", caption, head, rows)


_AS_COMPARED = {"pretrain": "as compared", "cpt_random": "as compared, CPT"}


def study(records: list[Record], corpus: str) -> list[Table]:
    """Runs with other settings, named by the plan, below those of the comparison itself."""
    rows = []
    for method, runs in by_method(select(records, corpus, "study")).items():
        compared = {name: select(records, corpus, stage) for stage, name in _AS_COMPARED.items()}
        seeds = {run["seed"] for run in runs}
        named = {
            name: [run for run in of if run["method"] == method and run["seed"] in seeds]
            for name, of in compared.items()
        }
        for run in runs:
            named.setdefault(run["setting"], []).append(run)
        for name, of in named.items():
            if not of:
                continue
            found = [averaged(of, metric) for metric in METRICS]
            values = [m.text(digits) if m else "" for m, digits in zip(found, (1, 3), strict=True)]
            given = [_values(run.get("learning_rate") for run in of)]
            given.append(_values(map(sequential_steps, of)))
            rows.append([Cell(name), Cell(label(method)), *map(Cell, [*given, *values])])
    caption = (
        "Averages over sources after pre-training, or after continued pre-training where the name "
        f"says so; lower is better; {SPREAD}. Perplexity may be compared within one tokenizer only."
    )
    head = ["setting", "method", "learning rate", "steps", *METRICS.values()]
    return plain(corpus, "study", "other settings", caption, head, rows, texts=2)


def setting(records: list[Record], corpus: str) -> list[Table]:
    """What each run was given, as far as it does not depend on the machine."""
    rows, parts = [], []
    for stage, name in STAGES.items():
        if stage == "downstream":  # its runs have epochs of a task, not rounds
            continue
        found = by_method(select(records, corpus, stage))
        parts += [len(rows)] if rows and found else []
        for method, runs in found.items():
            given = [Cell(name), Cell(label(method)), Cell(str(len(runs)))]
            keys = ("seed", "draw", "learning_rate", "rounds", "local_steps")
            values = [_values(run.get(key) for run in runs) for key in keys]
            values += [_values(map(sequential_steps, runs))]
            values += [_values(run["tokens"] for run in runs)]
            rows.append([*given, *map(Cell, values)])
    caption = (
        "Draws: numbers of the random embeddings that runs start from. Learning rate: its peak. "
        "Steps: sequential ones of a source's training. Tokens: all that a run trained on."
    )
    head = ["stage", "method", "runs", "seeds", "draws", "learning rate", "rounds"]
    head += ["local steps", "steps", "tokens"]
    return plain(corpus, "setting", "runs", caption, head, rows, tuple(parts), texts=2)


def _values(values: Iterable[Any]) -> str:
    """What differs among runs, each value once."""
    distinct = sorted({value for value in values if value is not None})
    texts = [f"{v:,}" if isinstance(v, int) else f"{v:g}" for v in distinct]
    return ", ".join(texts) if len(texts) <= 3 else f"{texts[0]} to {texts[-1]}"


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:,.1f} MB"
