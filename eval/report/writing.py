"""Makes the report of a comparison from the records of its runs.

    python -m dept.evaluation.report results

reads ``results/runs/*.json`` and writes ``results/tables.md``, ``results/plots/*.png`` and
``results/index.html``, which needs neither of the others. It needs matplotlib and pandas, but no
torch and no llm-foundry, and the same records give the same bytes (with the same matplotlib).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dept.checkpoint import durable
from dept.evaluation.report.page import html
from dept.evaluation.report.plots import plots
from dept.evaluation.report.run_records import Record, arranged
from dept.evaluation.report.table import document
from dept.evaluation.report.tables import tables

TABLES, PLOTS, PAGE = "tables.md", "plots", "index.html"


def write(records: Iterable[Record], folder: Path) -> list[Path]:
    """Write tables, plots and the page; plots that no record asks for any more are removed.

    Args:
        records: one for each finished run, in any order.
        folder: where to write; it is made if it is not there.

    Returns:
        the files, the page last.

    Raises:
        ValueError: there are no records, or ``run_records.check`` refuses them.
    """
    records = list(records)
    if not records:
        raise ValueError("no run has finished, so there is nothing to report")
    ordered = arranged(records)
    every_table, every_plot = tables(ordered), plots(ordered)
    files = {folder / PLOTS / f"{plot.name}.png": plot.png for plot in every_plot}
    for stale in set((folder / PLOTS).glob("*.png")) - set(files):
        stale.unlink()
    files[folder / TABLES] = document(every_table).encode()
    files[folder / PAGE] = html(every_table, every_plot).encode()
    for path, content in files.items():
        durable.write(path, content)
    return list(files)
