"""A heat map of bits per byte of texts under models; each row has its own scale of shades."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dept.evaluation.report import drawing

_CELL = (0.78, 0.42)  # inches
_LABELS = (2.2, 1.9)  # inches for names, title and scale
_MOST = 4.0  # times the lowest of a row: what is above has the palest shade


def heat_map(rows: pd.DataFrame, title: str, columns: str) -> bytes:
    """A PNG; the same bytes from the same values.

    Texts differ too much in what a byte of them costs for one scale, so a shade says how many times
    the lowest value of its row a value is.

    Args:
        rows: by text, columns by what it was scored with.
        title: of the figure.
        columns: what the columns are.
    """
    names, values = list(rows), rows.to_numpy(dtype=float)
    ratio = values / values.min(axis=1, keepdims=True)
    with drawing.style():
        width = max(len(names) * _CELL[0] + _LABELS[0], 5.5)
        figure = Figure(figsize=(width, len(rows) * _CELL[1] + _LABELS[1]), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        shades = axes.imshow(ratio, cmap="Blues_r", norm="log", vmin=1, vmax=_MOST, aspect="auto")
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(rows)), list(rows.index))
        axes.set_xlabel(columns)
        axes.set_ylabel("text")
        axes.tick_params(length=0)
        axes.grid(False)
        for side in axes.spines.values():
            side.set_visible(False)
        for (row, column), value in np.ndenumerate(values):
            dark = ratio[row, column] < _MOST**0.5
            lowest = ratio[row, column] == 1
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                color="white" if dark else "black",
                fontweight="bold" if lowest else "normal",
                fontsize=9,
            )
        scale = figure.colorbar(shades, ax=axes, extend="max", pad=0.02)
        scale.set_ticks([1, 1.5, 2, 3, 4], labels=["1", "1.5", "2", "3", "4"])
        scale.ax.minorticks_off()
        scale.set_label("times the lowest of the row")
        return drawing.png(figure, title)
