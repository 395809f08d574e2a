"""What the clusters of a corpus hold, and the cluster of a text.

    python data_prep/cluster.py mine.yaml [--root .]
    python data_prep/cluster.py mine.yaml --text "Wash the rice before you cook it."

The corpus has a source with `k` (data_prep/corpus.py) and is prepared. Where its text came from
other prepared corpora (`files: data/other/*/text/*/*.jsonl.zst`), clusters are compared with their
sources, and with both parts of names such as `bible.en`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from dept import terminal
from dept.data_prep.clusters.divide import FOLDER, counts_by_file
from dept.data_prep.clusters.models import load
from dept.data_prep.corpus_yaml import load_corpus
from dept.errors import DataError
from dept.log import log

SHOWN = 3  # labels of a cluster


def label_of(file: str) -> str:
    """The source that a text part is of (`data/corpus/SOURCE/text/train/00000.jsonl.zst`), or the
    name of another file."""
    path = Path(file)
    if path.parent.parent.name == "text":
        return path.parents[2].name
    return path.name.split(".")[0]


def by_label(counts: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Documents by label (rows) and cluster (columns).

    Args:
        counts: documents of each cluster, by input file.
    """
    rows = pd.DataFrame.from_dict(counts, orient="index")
    return rows.groupby(label_of).sum()


def agreement(documents: pd.DataFrame) -> float:
    """Adjusted mutual information of labels and clusters: 0 for chance, 1 if they are the same.

    Args:
        documents: their number by label (rows) and cluster (columns).
    """
    from sklearn.metrics import adjusted_mutual_info_score

    labels, clusters = np.indices(documents.shape).reshape(2, -1)
    times = documents.to_numpy().ravel()
    return float(adjusted_mutual_info_score(np.repeat(labels, times), np.repeat(clusters, times)))


def agreements(documents: pd.DataFrame) -> dict[str, float]:
    """Agreement with the labels, and with each part of labels that have two parts.

    Args:
        documents: their number by label (rows) and cluster (columns).
    """
    found = {"source": agreement(documents)}
    parts = [str(label).split(".") for label in documents.index]
    if all(len(part) == 2 for part in parts):
        for place, name in enumerate(("first part of its name", "second part")):
            merged = documents.groupby([part[place] for part in parts]).sum()
            found[name] = agreement(merged)
    return found


def table(documents: pd.DataFrame, name: str) -> Table:
    """What each cluster holds.

    Args:
        documents: their number by label (rows) and cluster (columns).
        name: name of the source that was divided.
    """
    view = Table(title=f"clusters of {name}")
    for column, justify in (("cluster", "left"), ("documents", "right"), ("mostly", "left")):
        view.add_column(column, justify=justify)
    for cluster, column in documents.items():
        share = (column / max(column.sum(), 1)).sort_values(ascending=False)[:SHOWN]
        mostly = ", ".join(f"{label} {part:.0%}" for label, part in share.items() if part > 0)
        view.add_row(f"{name}{cluster}", f"{column.sum():,}", mostly)
    if len(documents) > 1:
        values = [f"{what} {value:.3f}" for what, value in agreements(documents).items()]
        view.caption = f"adjusted mutual information with the {', '.join(values)}"
    return view


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="corpus yaml")
    parser.add_argument("--root", type=Path, default=Path(), help="where data/ is")
    parser.add_argument("--text", help="a text, whose cluster is printed")
    options = parser.parse_args(arguments)
    try:
        corpus = load_corpus(options.corpus)
        if corpus.cluster is None:
            raise DataError(
                f"{options.corpus} gives its sources: one with k (a number of clusters) has them "
                "found, see data_prep/corpus.py."
            )
        folder = options.root / "data" / corpus.corpus / FOLDER
        if not (folder / "model").is_dir():
            raise DataError(f"{folder} has no clusters: prepare {options.corpus} first.")
    except DataError as error:
        log.error(f"error: {error}")
        return 1
    name = corpus.sources[0].name
    if options.text is not None:
        print(f"{name}{load(folder / 'model').scores([options.text]).argmax()}")
        return 0
    terminal.show(table(by_label(counts_by_file(folder)), name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
