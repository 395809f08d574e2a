"""The table of fine-tuning: scores of bodies on tasks, beside baselines without a body."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dept.evaluation.report.measured import SPREAD, cells, pivoted
from dept.evaluation.report.names import label
from dept.evaluation.report.run_records import RUN, select
from dept.evaluation.report.table import Table

# Keys of a record's ``baselines``.
WITHOUT = {
    "majority": "most frequent class",
    "bag_of_tokens": "bag of tokens",
    "bag_of_words": "bag of words",
}
NAMES = {"accuracy": "accuracy", "pearson": "Pearson correlation"}


def downstream(records: pd.DataFrame, corpus: str) -> list[Table]:
    """Methods by tasks, on the test examples.

    Args:
        records: of any stages, as ``run_records.arranged`` gives them.
        corpus: that bodies were pre-trained on.
    """
    here = select(records, corpus, "downstream")
    if here.empty:
        return []
    metrics = dict(sorted(zip(here["task"], here["metric"], strict=True)))
    rows = []
    for key, name in WITHOUT.items():
        # It has no seed, and is the same in every run that reads the same.
        found = {r.task: r.baselines[key] for r in here.itertuples() if key in r.baselines}
        texts = (f"{found[task]:.3f}" if task in found else "" for task in metrics)
        rows += [[name, *texts, ""]] if found else []
    values = [run.test[run.metric] for run in here.itertuples()]
    tested = pivoted(here, values, ["init", "method"], "task").reindex(columns=list(metrics))
    untrained, trained = (tested[tested.index.isin([i], "init")] for i in ("random", "pretrained"))
    for row in cells(untrained.droplevel("method"), 3, best=None).values():
        rows.append(["no pre-training", *row])
    of_methods = cells(trained, 3, best=np.fmax)
    baselines = set(here["method"][here["baseline"]])
    parts = dict.fromkeys((len(rows), len(rows) + sum(m in baselines for _, m in of_methods)))
    rows += [[label(method), *row] for (_, method), row in of_methods.items()]
    caption = (
        "On test examples, higher is better; of the epoch that was best on validation examples; "
        f"best of the methods bold; {SPREAD}. Above the line, without pre-training: linear models "
        "of counts, of the tokens that the model reads and of words, which have no seed; and the "
        "same body from random initialisation."
    )
    head = ["method", *((task, NAMES[metric]) for task, metric in metrics.items()), "runs"]
    title = f"{corpus}, fine-tuning"
    table = Table(corpus, "downstream", title, caption, head, rows, tuple(parts))
    return [table, *_in_other_languages(here, corpus)]


def _in_other_languages(here: pd.DataFrame, corpus: str) -> list[Table]:
    """For each task with tests in other languages: methods by sources."""
    tables = []
    tuned = here[(here["init"] == "pretrained") & here["transfer"].map(bool)]
    for (task, metric), runs in tuned.groupby(["task", "metric"]):
        others = [{name: of[metric] for name, of in scores.items()} for scores in runs["transfer"]]
        own = [{"fine-tuned on": scores[metric]} for scores in runs["test"]]
        means = [{"mean of the others": np.mean(list(scores.values()))} for scores in others]
        rows = [a | b | c for a, b, c in zip(own, others, means, strict=True)]
        values = pd.DataFrame(rows, pd.MultiIndex.from_frame(runs[["method", *RUN]]), dtype=float)
        caption = (
            f"{NAMES[metric].capitalize()} of one head on the same examples in each language, with "
            "the embedding and tokenizer of that source where a method has one, and with its one "
            f"embedding otherwise; best of the methods bold; {SPREAD}."
        )
        tables.append(
            Table(
                corpus,
                "downstream",
                f"{corpus}, {task} in other languages",
                caption,
                ["method", *values, "runs"],
                [[label(method), *row] for (method,), row in cells(values, 3, np.fmax).items()],
            )
        )
    return tables
