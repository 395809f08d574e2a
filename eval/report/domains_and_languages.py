"""Domain times language: which division of the text into sources gives the best body for what.

A cell is a source named ``<domain>.<language>``. Bodies whose sources were cells, whole languages,
whole domains or one mixture are continued alike on all cells, and are evaluated on each cell.
"""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from dept.evaluation.report.measured import SPREAD, by_source, cells
from dept.evaluation.report.names import label
from dept.evaluation.report.run_records import names
from dept.evaluation.report.table import Table

STAGE, TOPIC = "cpt_random", "domains_and_languages"
SEEN = "seen cells"
OTHER = {
    (True, True): "held-out cells",
    (True, False): "held-out languages",
    (False, True): "held-out domains",
    (False, False): "both held out",
}
"""Groups of held-out cells, by whether their domain and their language are in a seen cell."""


def on_cells(records: pd.DataFrame) -> pd.DataFrame:
    """The runs that were continued on cells of several domains and several languages.

    Args:
        records: records of all runs.
    """
    chosen = [
        record.stage == STAGE and _is_of_cells(record.sources) for record in records.itertuples()
    ]
    return records[pd.Series(chosen, index=records.index, dtype=bool)]


def _is_of_cells(sources: Collection[str]) -> bool:
    if not sources or any(name.count(".") != 1 for name in sources):
        return False
    parts = [name.split(".") for name in sources]
    return all(len({part[place] for part in parts}) > 1 for place in (0, 1))


def groups(seen: Collection[str], held_out: Collection[str]) -> dict[str, list[str]]:
    """The cells of each group, in the corpus's own order.

    Args:
        seen: names of the cells that bodies were continued on.
        held_out: names of the others that they are evaluated on.

    Returns:
        Names by group; groups without a cell are left out.
    """
    domains, languages = ({name.split(".")[place] for name in seen} for place in (0, 1))
    found: dict[str, list[str]] = {SEEN: list(seen)} | {name: [] for name in OTHER.values()}
    for name in held_out:
        domain, language = name.split(".")
        found[OTHER[domain in domains, language in languages]].append(name)
    return {name: of for name, of in found.items() if of}


def values(runs: pd.DataFrame) -> pd.DataFrame:
    """Bits per byte of each cell.

    Args:
        runs: as :func:`on_cells` gives them.

    Returns:
        Rows by corpus, method, seed and draw; columns by group and cell.
    """
    divided = groups(names(runs, "sources"), names(runs, "held_out"))
    parts = []
    for corpus, of in runs.groupby("corpus", sort=False):
        both = [
            by_source(of, kind, names(runs, kind), "bits_per_byte")
            for kind in ("sources", "held_out")
        ]
        parts.append(pd.concat({corpus: pd.concat(both, axis=1)}, names=["corpus"]))
    found = pd.concat(parts)
    columns = [(group, name) for group, cells_of in divided.items() for name in cells_of]
    found = found[[name for _, name in columns]]
    found.columns = pd.MultiIndex.from_tuples(columns)
    return found


def domains_and_languages(records: pd.DataFrame) -> list[Table]:
    """A row for each division and method: means over the cells of each group.

    Args:
        records: records of all runs.

    Returns:
        One table; none if no run was continued on cells.
    """
    runs = on_cells(records)
    if runs.empty:
        return []
    by_cell = values(runs)
    means = by_cell.T.groupby(level=0, sort=False).mean().T
    counts = {group: len(by_cell[group].columns) for group in means}
    rows = [[corpus, label(method), *row] for (corpus, method), row in cells(means, 3).items()]
    caption = (
        "Bits per byte after continued pre-training on all seen cells from random embeddings, mean "
        f"over the cells of a group, lower is better; {SPREAD}. Pre-trained on: the corpus, which "
        "says what a source was; STD has all its text in one mixture. Held-out cells: their domain "
        "and their language are both in seen cells, but never together."
    )
    head = ["pre-trained on", "method"]
    head += [(group, f"{count} cell{'s' * (count > 1)}") for group, count in counts.items()]
    title = "Domain times language"
    return [Table("", TOPIC, title, caption, [*head, "runs"], rows, texts=2)]


def of_each_cell(records: pd.DataFrame) -> pd.DataFrame | None:
    """For a heat map: mean bits per byte of each cell, by division and method.

    Args:
        records: records of all runs.

    Returns:
        Rows by cell, columns by division and method; ``None`` if no run was continued on cells.
    """
    runs = on_cells(records)
    if runs.empty:
        return None
    means = values(runs).groupby(level=["corpus", "method"], sort=False).mean().T
    means.columns = [f"{label(method)}, {corpus}" for corpus, method in means]
    return means.droplevel(0).dropna()
