"""A plot of a report: its file with its title and caption, and what all plots share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.figure import Figure

from dept.evaluation.report import drawing
from dept.evaluation.report.names import METHODS


@dataclass(frozen=True)
class Plot:
    """A plot of a corpus's topic; ``png`` holds the file, ``name`` is unique.

    Attributes:
        corpus: name of the corpus.
        topic: topic, such as a stage.
        name: name of the file, without ending.
        title: title, which the plot shows too.
        caption: text below the plot.
        png: content of the PNG file, in bytes.
    """

    corpus: str
    topic: str
    name: str
    title: str
    caption: str
    png: bytes


def plot_of(figure: Figure, corpus: str, topic: str, kind: str, title: str, caption: str) -> Plot:
    """A figure as a plot of a report.

    Args:
        figure: the figure, which gets the title.
        corpus: name of the corpus.
        topic: topic, such as a stage.
        kind: further part of the name, which may be empty.
        title: title without the corpus.
        caption: text below the plot.
    """
    name = "-".join(part for part in (corpus, topic, kind) if part)
    title = f"{corpus}, {title}"
    return Plot(corpus, topic, name, title, caption, drawing.png(figure, title))


def counts(runs: Iterable[int]) -> str:
    """The numbers of runs of several methods, for a caption."""
    return " or ".join(map(str, sorted(set(runs))))


def methods_of(*found: Iterable[str]) -> list[str]:
    """The methods that any of them has, in the order of legends."""
    every = set().union(*found)
    return [method for method in METHODS if method in every]
