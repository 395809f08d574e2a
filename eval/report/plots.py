"""Every plot of a report as PNG, from records: the same bytes from the same records."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from dept.evaluation.report import curves, drawing
from dept.evaluation.report.compare import AVERAGE, Comparison
from dept.evaluation.report.comparison_tables import comparisons
from dept.evaluation.report.curves import Line
from dept.evaluation.report.domains_and_languages import TOPIC, of_each_cell
from dept.evaluation.report.heat_map import heat_map
from dept.evaluation.report.names import (
    COMPARED,
    METHODS,
    METRICS,
    PLASTICITY,
    STUDIED,
    metric_of,
)
from dept.evaluation.report.plot import Plot, counts, methods_of, plot_of
from dept.evaluation.report.run_records import stage_name
from dept.evaluation.report.sent import sent
from dept.evaluation.report.study_plots import coded, differences_of


def plots(records: pd.DataFrame) -> list[Plot]:
    """Every plot that the records have values for, in the order of a report.

    Args:
        records: as ``run_records.arranged`` gives them.
    """
    found: list[Plot | None] = []
    with drawing.style():
        every = comparisons(records, by_budget=False)
        for corpus in records["corpus"].unique():
            here = [comparison for comparison in every if comparison.corpus == corpus]
            for stage in COMPARED:
                found.append(_over_tokens(records, corpus, stage))
                found.append(_bars([c for c in here if c.stage == stage]))
            found += [_plasticity(records, corpus, stage) for stage in PLASTICITY]
            found.append(_norms(records, corpus))
            found.append(_bytes(records, corpus, here))
            found.append(coded(records, corpus))
            found += [differences_of(records, corpus, stage) for stage in STUDIED]
    found.append(_cells(records))
    return [plot for plot in found if plot]


def _cells(records: pd.DataFrame) -> Plot | None:
    means = of_each_cell(records)
    if means is None:
        return None
    title = "Bits per byte of each cell, by what the body was pre-trained on"
    caption = "Means over runs; bold: the lowest of a cell. Cells are in the order of the groups."
    png = heat_map(means, title, "method, and the corpus of pre-training")
    return Plot("", TOPIC, "domains-and-languages", title, caption, png)


def _over_tokens(records: pd.DataFrame, corpus: str, stage: str) -> Plot | None:
    lines, metric = curves.over_tokens(records, corpus, stage), METRICS[metric_of(stage)]
    stage_is = stage_name(records, corpus, stage)
    if all(len(line.x) < 2 for line in lines.values()):
        return None
    figure, (axes,) = drawing.panels(1, 3.8)
    logarithmic = metric_of(stage) == "perplexity"
    drawing.draw(axes, lines, logarithmic)
    outside = drawing.focus(axes, lines, logarithmic)
    axes.set_xlabel(f"tokens trained in {stage_is}")
    axes.set_ylabel(f"{metric}, average over sources")
    drawing.legend(figure, lines, notes=dict.fromkeys(outside, _OUTSIDE))
    title = f"{metric} over tokens, {stage_is}"
    caption = f"{_of_lines(lines.values())} The start may lie above the plot."
    return plot_of(figure, corpus, stage, "tokens", title, caption)


_OUTSIDE = "(above the plot)"


def _of_lines(lines: Iterable[Line]) -> str:
    runs = counts(len(line.y) for line in lines)
    return (
        f"Line: mean over runs ({runs} a method); band: ± their sample standard deviation (n - 1)."
    )


def _bars(found: list[Comparison]) -> Plot | None:
    """A panel of bars for each source, with its own scale, since sources differ too much."""
    if not found:
        return None
    corpus, stage, metric = found[0].corpus, found[0].stage, METRICS[found[0].metric]
    methods = methods_of(*(comparison.means.index for comparison in found))
    every = [(comparison, name) for comparison in found for name in comparison.columns]
    figure, panels = drawing.panels(len(every), 1.9, columns=6)
    for axes, (comparison, name) in zip(panels, every, strict=True):
        for place, method in enumerate(methods):
            values = comparison.values[name].reindex([method], level="method").dropna()
            if len(values) and np.isfinite(values).all():
                axes.bar(place, values.mean(), 0.88, color=METHODS[method].colour)
                if values.std() > 0:
                    axes.errorbar(place, values.mean(), values.std(), ecolor="black", elinewidth=1)
            elif len(values):
                axes.plot(place, 0, "x", color="black", clip_on=False)
        axes.set_xlim(-0.8, len(methods) - 0.2)
        axes.set_xticks([])
        axes.locator_params(axis="y", nbins=5)
        axes.set_title(f"{name} (held out)" if comparison.kind == "held_out" else name)
    drawing.legend(figure, methods, shape="bar")
    runs = counts(n for c in found for n in c.values.groupby("method").size())
    caption = (
        f"Bars from left to right as in the legend: mean over runs ({runs} a method); line on a "
        "bar: ± their sample standard deviation (n - 1); cross: diverged. Each panel has a scale "
        "of its own, from 0."
    )
    title = f"{metric} by source, {found[0].name}"
    return plot_of(figure, corpus, stage, "sources", title, caption)


def _plasticity(records: pd.DataFrame, corpus: str, stage: str) -> Plot | None:
    by_source = {name: ls for name, ls in curves.plasticity(records, corpus, stage).items() if ls}
    if not by_source:
        return None
    figure, panels = drawing.panels(len(by_source), 3.4)
    outside: set[str] = set()
    for axes, (name, lines) in zip(panels, by_source.items(), strict=True):
        drawing.draw(axes, lines, logarithmic=True)
        outside |= drawing.focus(axes, lines, logarithmic=True)
        axes.set_title(name)
        axes.set_xlabel("steps on this source")
    panels[0].set_ylabel("perplexity")
    methods = methods_of(*by_source.values())
    drawing.legend(figure, methods, notes=dict.fromkeys(outside, "(above a plot)"))
    name = stage_name(records, corpus, stage)
    title = f"{name}: perplexity while the body adapts to an unseen source"
    caption = _of_lines(line for lines in by_source.values() for line in lines.values())
    return plot_of(figure, corpus, stage, "", title, f"{caption} The start may lie above the plot.")


def _norms(records: pd.DataFrame, corpus: str) -> Plot | None:
    kinds = {key: curves.norms(records, corpus, key) for key in ("activations", "parameters")}
    kinds = {key: lines for key, lines in kinds.items() if lines}
    if not kinds:
        return None
    figure, panels = drawing.panels(len(kinds), 3.4)
    for axes, (key, lines) in zip(panels, kinds.items(), strict=True):
        drawing.draw(axes, lines)
        axes.set_title(f"norm of {key}")
        axes.set_xlabel("steps")
    methods = methods_of(*kinds.values())
    rates = curves.stability(records, corpus).groupby("method")["learning_rate"].unique()
    notes = {m: f"({', '.join(f'{rate:g}' for rate in sorted(rates[m]))})" for m in methods}
    drawing.legend(figure, methods, notes=notes)
    caption = _of_lines(line for lines in kinds.values() for line in lines.values())
    caption += " In brackets: the peak learning rate."
    title = "stability: L2 norms of activations and parameters"
    return plot_of(figure, corpus, "norms", "", title, caption)


def _bytes(records: pd.DataFrame, corpus: str, here: list[Comparison]) -> Plot | None:
    """Bytes that a source communicates against the score of the method."""
    given = sent(records, corpus)["exchanged"].dropna()
    compared = [c for c in here if c.kind == "sources" and c.stage in COMPARED]
    points = [(c, found) for c in compared if not (found := _points(c, given)).empty]
    some = given[given > 0]
    if not points or some.empty:
        return None
    first, last = math.floor(math.log10(some.min())), math.ceil(math.log10(some.max()))
    nothing = 10.0 ** (first - 1)  # its place on an axis without a zero
    ticks = {10.0**e: drawing.short(10.0**e) for e in range(first, last + 1)}
    if given.min() == 0:
        ticks[nothing] = "none"
    figure, panels = drawing.panels(len(points), 3.4)
    for axes, (comparison, found) in zip(panels, points, strict=True):
        for method, mean, spread, _ in found.itertuples():
            look, x = METHODS[method], given[method] or nothing
            axes.errorbar(
                x, mean, spread, fmt=look.marker, color=look.colour, markersize=8, capsize=3
            )
        axes.set_xscale("log")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xticks([], minor=True)
        axes.set_xlim(min(ticks) / 1.8, max(ticks) * 1.3)
        axes.set_title(comparison.name)
        axes.set_xlabel("bytes exchanged")
        axes.set_ylabel(f"average {METRICS[comparison.metric]}")
    drawing.legend(figure, methods_of(*(found.index for _, found in points)), shape="point")
    runs = counts(n for _, found in points for n in found["count"])
    caption = (
        "Horizontally: bytes that a source gives to the average in pre-training (parameters a "
        "step over all steps, float32), logarithmic. Lower and further left is better. Point: mean "
        f"over runs ({runs} a method); line: ± their sample standard deviation (n - 1)."
    )
    title = "bytes exchanged in pre-training against what is reached"
    return plot_of(figure, corpus, "communication", "", title, caption)


def _points(comparison: Comparison, given: pd.Series) -> pd.DataFrame:
    """Mean and spread of averages, by method; empty if not of baselines and of DEPT."""
    values = comparison.values[AVERAGE].groupby("method", sort=False).agg(["mean", "std", "count"])
    found = values[np.isfinite(values["mean"]) & values.index.isin(given.index)]
    sides = found.index.isin(comparison.baselines)
    return found if len(set(sides)) == 2 else found[:0]
