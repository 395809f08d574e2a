"""The common parts of plots: style, lines and legends of methods, and the file."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from dept.evaluation.report.curves import Line
from dept.evaluation.report.names import METHODS

_STYLE = {
    "font.family": "DejaVu Sans",  # matplotlib brings it
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "text.parse_math": False,  # a name may hold dollars
    "savefig.dpi": 90,  # the page holds every plot, and should stay below 1 MiB
}
_WIDTH = 10.5  # inches
_ROOM = 1.0  # inches for the title and the legend
_SETTLED = 0.15  # of a training, before which values may be too high to be of interest


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of the report, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def panels(count: int, height: float, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels, to be saved with ``png``.

    Args:
        height: of a row of panels, in inches.
        columns: panels in a row; all of them by default.
    """
    columns = min(columns or count, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(_WIDTH, rows * height + _ROOM), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def draw(axes: Axes, lines: Mapping[str, Line], logarithmic: bool = False) -> None:
    """One line a method: the mean over runs, and their sample standard deviation as a band.

    Args:
        axes: axes to draw on.
        lines: by method: ``x`` of shape [points], and ``y`` of shape [runs, points].
        logarithmic: give the y axis a logarithmic scale.
    """
    for method, line in lines.items():
        look, mean = METHODS[method], line.y.mean(axis=0)
        axes.plot(
            line.x,
            mean,
            color=look.colour,
            linestyle=look.dash,
            linewidth=1.6,
            marker=look.marker,
            markersize=4.5,
            markevery=max(len(line.x) // 8, 1),
        )
        if len(line.y) > 1:
            spread = line.y.std(axis=0, ddof=1)
            low, high = mean - spread, mean + spread
            axes.fill_between(line.x, low, high, color=look.colour, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 100 else f"{value:g}")
        )


def focus(axes: Axes, lines: Mapping[str, Line], logarithmic: bool = False) -> set[str]:
    """Scale to what is left of a falling curve once training has settled: differences are there.

    Args:
        axes: axes whose y limits are set.
        lines: lines by method, as for :func:`draw`.
        logarithmic: whether the y axis has a logarithmic scale.

    Returns:
        methods outside the plot: at their lowest they are above where most methods settled, and
        would press all others together.
    """
    end = max((line.x[-1] for line in lines.values() if len(line.x)), default=0)
    settled = {}
    for method, line in lines.items():
        values = line.y.mean(axis=0)[line.x >= _SETTLED * end]
        values = values[np.isfinite(values)]
        if len(values):
            settled[method] = (values.min(), values.max())
    if not settled:
        return set()
    usual = np.median([high for _, high in settled.values()])
    inside = {method: pair for method, pair in settled.items() if pair[0] <= usual}
    low, high = min(low for low, _ in inside.values()), max(high for _, high in inside.values())
    if low == high:  # a single point
        return set()
    if logarithmic:
        margin = (high / low) ** 0.06
        axes.set_ylim(low / margin, high * margin)
        subs = (1, 1.5, 2, 3, 5, 7) if high / low < 30 else (1, 3)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        margin = (high - low) * 0.06
        axes.set_ylim(low - margin, high + margin)
    return set(settled) - set(inside)


def legend(
    figure: Figure,
    methods: Iterable[str],
    shape: str = "line",
    notes: Mapping[str, str] | None = None,
) -> None:
    """Below the panels, where it covers nothing.

    Args:
        shape: ``line``, ``bar`` or ``point``.
        notes: what is added to a method's name.
    """
    handles = []
    for method in methods:
        look = METHODS[method]
        text = f"{look.label} {(notes or {}).get(method, '')}".strip()
        if shape == "bar":
            handles.append(Patch(color=look.colour, label=text))
            continue
        dash = look.dash if shape == "line" else "none"
        mark = {"marker": look.marker, "markersize": 5}
        handles.append(Line2D([], [], color=look.colour, linestyle=dash, label=text, **mark))
    rows = math.ceil(len(handles) / 5)
    columns = math.ceil(len(handles) / rows)
    by_row = [handle for column in range(columns) for handle in handles[column::columns]]
    figure.legend(
        handles=by_row,  # matplotlib fills columns first
        loc="outside lower center",
        ncols=columns,
        handlelength=3.4 if shape == "line" else 1.4,
    )


def png(figure: Figure, title: str) -> bytes:
    """The figure as a file without a date or a version in it, in 256 colours, which are enough.

    Args:
        figure: figure to save; it gets the title.
        title: title of the whole figure.

    Returns:
        The bytes of a PNG file.
    """
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    image = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(file, "png", optimize=True)
    return file.getvalue()


def short(value: float, _: int | None = None) -> str:
    """A number of tokens, steps or bytes, as short as it can be read.

    Args:
        value: number to show.
        _: position of a tick, which matplotlib's formatters pass; not used.
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
