"""The table of fine-tuning: what bodies are worth on tasks, beside what tasks give without one."""

from __future__ import annotations

from collections.abc import Iterable

from dept.evaluation.report.measured import SPREAD, Measured
from dept.evaluation.report.names import label
from dept.evaluation.report.run_records import Record, Run, by_method, number, run_of, select
from dept.evaluation.report.table import Cell, Table

# Keys of a record's ``baselines``.
WITHOUT = {
    "majority": "most frequent class",
    "bag_of_tokens": "bag of tokens",
    "bag_of_words": "bag of words",
}
NAMES = {"accuracy": "accuracy", "pearson": "Pearson correlation"}


def downstream(records: list[Record], corpus: str) -> list[Table]:
    """Methods by tasks, on the test examples.

    Args:
        records: of any stages, in the order of ``run_records.arranged``.
        corpus: that bodies were pre-trained on.
    """
    here = select(records, corpus, "downstream")
    if not here:
        return []
    metrics = {run["task"]: run["metric"] for run in sorted(here, key=lambda run: run["task"])}
    trained = [run for run in here if run["init"] == "pretrained"]
    counted = {name: _without(here, key) for key, name in WITHOUT.items()}
    rows = [[Cell(name), *_row(of, metrics)] for name, of in counted.items() if of]
    untrained = [run for run in here if run["init"] == "random"]
    rows += [[Cell("no pre-training"), *_row(_test(untrained), metrics)]] if untrained else []
    found = {method: _test(runs) for method, runs in by_method(trained).items()}
    best = {task: _highest(of[task] for of in found.values() if task in of) for task in metrics}
    baselines = [method for method in found if any(r["baseline"] for r in by_method(here)[method])]
    parts = dict.fromkeys((len(rows), len(rows) + len(baselines)))
    rows += [[Cell(label(method)), *_row(of, metrics, best)] for method, of in found.items()]
    caption = (
        "On test examples, higher is better; of the epoch that was best on validation examples; "
        f"best of the methods bold; {SPREAD}. Above the line, without pre-training: linear models "
        "of counts, of the tokens that the model reads and of words; and the same body from random "
        "initialisation. Bodies are those after continued pre-training from random embeddings."
    )
    heads = [("method", ""), *((task, NAMES[metric]) for task, metric in metrics.items())]
    title = f"{corpus}, fine-tuning"
    return [Table(corpus, "downstream", title, caption, heads, rows, tuple(parts))]


def _test(runs: Iterable[Record]) -> dict[str, Measured]:
    """By task."""
    found: dict[str, dict[Run, float]] = {}
    for run in runs:
        value = number(run["test"][run["metric"]])
        assert value is not None
        found.setdefault(run["task"], {})[run_of(run)] = value
    return {task: Measured(by_run) for task, by_run in found.items()}


def _without(runs: Iterable[Record], key: str) -> dict[str, Measured]:
    """A baseline by task: it has no seed, and is the same in every run that reads the same."""
    found = {run["task"]: run["baselines"][key] for run in runs if key in run["baselines"]}
    return {task: Measured({(0, None): value}) for task, value in found.items()}


def _row(
    of: dict[str, Measured], tasks: Iterable[str], best: dict[str, str] | None = None
) -> list[Cell]:
    cells = []
    for task in tasks:
        measured = of.get(task)
        if measured is None or measured.diverged:
            cells.append(Cell("diverged" if measured else ""))
            continue
        is_best = best is not None and f"{measured.mean:.3f}" == best[task]
        cells.append(Cell(measured.text(3), is_best))
    return cells


def _highest(found: Iterable[Measured]) -> str:
    """The highest mean as it is shown: equal values are all the best."""
    return f"{max((m.mean for m in found if not m.diverged), default=-1.0):.3f}"
