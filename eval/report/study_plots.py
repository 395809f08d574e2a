"""Plots of studies: bits per byte over bytes sent, and what each setting changes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter

from dept.evaluation.report import drawing
from dept.evaluation.report.names import METHODS, STAGES, STUDIED
from dept.evaluation.report.plot import Plot, counts, methods_of, plot_of
from dept.evaluation.report.run_records import number, select
from dept.evaluation.report.sent import bytes_exchanged
from dept.evaluation.report.studies import Part, parts_of, studied


def coded(records: pd.DataFrame, corpus: str) -> Plot | None:
    """Bits per byte against bytes sent: every method, and the settings of the compression study."""
    runs = studied(records, corpus, "compression", "pretrain")
    if set(runs.index.get_level_values("setting")) <= {STUDIED["compression"]}:
        return None
    every = select(records, corpus, "pretrain")
    every = every[every["source"].isna()]
    values = [number(of.get("bits_per_byte")) for of in every["average"]]
    every = every.assign(value=values, sent=bytes_exchanged(every), setting=STUDIED["compression"])
    runs = pd.concat([every.set_index(runs.index.names)[["value", "sent"]], runs])
    runs = runs[~runs.index.duplicated()]
    runs = runs[np.isfinite(runs["value"]) & (runs["sent"] > 0)]
    found = runs.groupby(level=["method", "setting"], sort=False).agg(
        {"value": ["mean", "std", "count"], "sent": ["mean"]}
    )
    figure, (axes,) = drawing.panels(1, 4.4)
    named: set[tuple[str, str]] = set()
    for (method, setting), (mean, spread, _, sent_bytes) in found.iterrows():
        look, is_plain = METHODS[method], setting == STUDIED["compression"]
        name, _, without = setting.partition(", ")
        axes.errorbar(
            sent_bytes,
            mean,
            spread,
            fmt=look.marker,
            color=look.colour,
            markerfacecolor="white" if without else look.colour,
            markersize=8 if is_plain else 6,
            capsize=3,
        )
        if not is_plain and (method, name) not in named:
            named.add((method, name))
            place = {"xytext": (0, -12), "textcoords": "offset points", "ha": "center"}
            axes.annotate(name, (sent_bytes, mean), fontsize=7, color=look.colour, **place)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(drawing.short))
    axes.set_xlabel("bytes that a source gives to the average in pre-training")
    axes.set_ylabel("bits per byte, average over sources")
    drawing.legend(figure, methods_of(found.index.get_level_values("method")), shape="point")
    runs_each = counts(found["value", "count"].astype(int))
    caption = (
        "Horizontally: bytes that a source sends in all of pre-training, as coded, logarithmic; "
        "STD sends its gradients at every step (DDP). Large: methods as compared, not coded; "
        "small, with a name: coded; hollow: without error feedback. Point: mean over runs "
        f"({runs_each} each); line: ± their sample standard deviation (n - 1)."
    )
    title = "bits per byte after pre-training over bytes sent"
    return plot_of(figure, corpus, "compression", "", title, caption)


def differences_of(records: pd.DataFrame, corpus: str, stage: str) -> Plot | None:
    """How far each setting of a study is from the reference, in the same run."""
    if select(records, corpus, stage).empty:
        return None
    parts = [
        (part, found) for part in parts_of(records, corpus, stage) if len(found := _finite(part))
    ]
    if not parts:
        return None
    settings = list(dict.fromkeys(s for _, found in parts for s in found.index.unique("setting")))
    methods = methods_of(*(found.index.get_level_values("method") for _, found in parts))
    figure, panels = drawing.panels(len(parts), 0.6 + 0.42 * len(settings))
    for axes, (part, found) in zip(panels, parts, strict=True):
        for (method, setting), values in found.groupby(level=["method", "setting"]):
            look, line = METHODS[method], settings.index(setting)
            place = line + 0.22 * (methods.index(method) - (len(methods) - 1) / 2)
            spread = values.std() if len(values) > 1 else None
            style = {"fmt": look.marker, "color": look.colour, "capsize": 3}
            axes.errorbar(values.mean(), place, xerr=spread, **style)
        axes.axvline(0, color="black", linewidth=1)
        axes.set_yticks(range(len(settings)), settings)
        axes.set_ylim(len(settings) - 0.5, -0.5)
        axes.set_xlabel(f"{part.name}, % from {STUDIED[stage]}")
    for axes in panels[1:]:
        axes.set_yticklabels([])
    drawing.legend(figure, methods, shape="point")
    runs = counts(
        n for _, found in parts for n in found.groupby(level=["method", "setting"]).size()
    )
    caption = (
        f"How far a run is from the run of {STUDIED[stage]} with the same seed and, after CPT, the "
        f"same random embedding; to the left is better. Point: mean over pairs ({runs} each); "
        "line: ± their sample standard deviation (n - 1). Runs that diverged are left out."
    )
    return plot_of(
        figure, corpus, stage, "settings", f"{STAGES[stage]}: what each setting changes", caption
    )


def _finite(part: Part) -> pd.Series:
    """Its differences, without those of the reference."""
    of = part.differences[np.isfinite(part.differences)]
    return of[~of.index.isin([STUDIED[part.stage.removesuffix("_cpt")]], "setting")]
