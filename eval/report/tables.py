"""Every table of a report, from records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from eval.report.compare import Measured
from eval.report.comparison_tables import comparison_tables, comparisons, overview
from eval.report.downstream import downstream
from eval.report.names import METHODS, METRICS, STAGES, label, metric_of
from eval.report.run_records import Record, by_method, corpora, number, select, sequential_steps
from eval.report.sent import sent
from eval.report.table import Cell, Table


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
        for make in (downstream, communication, tuning, study, setting):
            found += make(records, corpus)
    return found


def methods(records: list[Record]) -> list[Table]:
    """What each method is."""
    rows, dept = [], 0
    for method, runs in by_method(records).items():
        dept += runs[0]["baseline"]
        kind = "baseline" if runs[0]["baseline"] else "DEPT"
        rows.append([Cell(label(method)), Cell(kind), Cell(METHODS[method].what)])
    caption = "In the order of all tables and plots."
    heads = [(name, "") for name in ("method", "kind", "what it is")]
    return [Table("", "overview", "Methods", caption, heads, rows, (dept,), texts=3)]


def communication(records: list[Record], corpus: str) -> list[Table]:
    """What each method hands over in pre-training."""
    rows = [
        [
            Cell(label(method)),
            Cell("" if of.per_step is None else f"{of.per_step:,.0f}"),
            Cell("" if of.reduction is None else f"{of.reduction:,.0f} times"),
            *(Cell(_megabytes(value)) for value in (of.handed_over, of.counted, of.every_step)),
        ]
        for method, of in sent(records, corpus).items()
    ]
    caption = (
        "Parameters a step: what a source hands over to the average, spread over its local "
        "steps; reduction: how many times that goes into the whole model. A source in all: those "
        "parameters over all steps, in float32. Sent: what the run's workers sent one another, "
        "counted where it is handed to the transport; nothing if one worker trained all sources, "
        "blank where it was not counted. With every gradient: what they would have sent then."
    )
    head = ["method", "parameters a step", "reduction", "a source in all", "sent"]
    head += ["with every gradient"]
    return _table(corpus, "communication", "what is handed over", caption, head, rows)


def tuning(records: list[Record], corpus: str) -> list[Table]:
    """Learning rates that were tried, and what each gave."""
    here, metric = select(records, corpus, "tuning"), metric_of("tuning")
    rates = sorted({run["learning_rate"] for run in here})
    rows = []
    for method, runs in by_method(here).items():
        found = {rate: _average(runs, rate, metric) for rate in rates}
        texts = {rate: f"{m.mean:.3f}" if m and not m.diverged else "" for rate, m in found.items()}
        lowest = min((text for text in texts.values() if text), key=float, default=None)
        cells = [
            Cell("diverged" if m and m.diverged else texts[rate], bool(m) and texts[rate] == lowest)
            for rate, m in found.items()
        ]
        rows.append([Cell(label(method)), *cells])
    caption = (
        f"Average {METRICS[metric]} over sources after pre-training, lower is better; the best "
        "rate of a method bold; blank: not tried."
    )
    head = ["method", *(f"{rate:g}" for rate in rates)]
    return _table(corpus, "tuning", "peak learning rates", caption, head, rows)


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
            found = [_average(of, None, metric) for metric in METRICS]
            figures = [Cell(_spread(m, digits)) for m, digits in zip(found, (1, 3), strict=True)]
            given = [_values(run.get("learning_rate") for run in of)]
            given.append(_values(map(sequential_steps, of)))
            rows.append([Cell(name), Cell(label(method)), *map(Cell, given), *figures])
    caption = (
        "Averages over sources after pre-training, or after continued pre-training where the name "
        "says so; lower is better; mean over seeds ± half the range over seeds. Perplexity may be "
        "compared within one tokenizer only."
    )
    head = ["setting", "method", "learning rate", "steps", *METRICS.values()]
    return _table(corpus, "study", "other settings", caption, head, rows, texts=2)


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
            keys = ("seed", "learning_rate", "rounds", "local_steps")
            figures = [_values(run.get(key) for run in runs) for key in keys]
            figures += [_values(map(sequential_steps, runs))]
            figures += [_values(run["tokens"] for run in runs)]
            rows.append([*given, *map(Cell, figures)])
    caption = (
        "Learning rate: its peak. Steps: sequential ones of a source's training. Tokens: all that "
        "a run trained on."
    )
    head = ["stage", "method", "runs", "seeds", "learning rate", "rounds", "local steps", "steps"]
    head += ["tokens"]
    return _table(corpus, "setting", "runs", caption, head, rows, tuple(parts), texts=2)


def _table(
    corpus: str,
    topic: str,
    title: str,
    caption: str,
    head: list[str],
    rows: list[list[Cell]],
    parts: tuple[int, ...] = (),
    texts: int = 1,
) -> list[Table]:
    if not rows:
        return []
    heads = [(name, "") for name in head]
    return [Table(corpus, topic, f"{corpus}, {title}", caption, heads, rows, parts, texts)]


def _average(runs: list[Record], rate: float | None, metric: str) -> Measured | None:
    """The average over sources that runs tell, of one learning rate or of any."""
    found: dict[int, list[float]] = {}
    for run in runs:
        value = number((run.get("average") or {}).get(metric))
        if rate in (None, run["learning_rate"]) and value is not None:
            found.setdefault(run["seed"], []).append(value)
    return Measured({seed: sum(v) / len(v) for seed, v in found.items()}) if found else None


def _spread(of: Measured | None, digits: int) -> str:
    if of is None or of.diverged:
        return "diverged" if of else ""
    return f"{of.mean:,.{digits}f}" + (f" ± {of.spread:.{digits}f}" if of.spread else "")


def _values(values: Iterable[Any]) -> str:
    """What differs among runs, told once each."""
    distinct = sorted({value for value in values if value is not None})
    texts = [f"{v:,}" if isinstance(v, int) else f"{v:g}" for v in distinct]
    return ", ".join(texts) if len(texts) <= 3 else f"{texts[0]} to {texts[-1]}"


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:,.1f} MB"
