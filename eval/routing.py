"""Find the source of a text, to read it with the tokenizer and embedding that fit it best:

    python eval/routing.py CHECKPOINT [--lengths 100 500] [--pieces 200] [--out FILE]
    python eval/routing.py --corpus NAME [--own]

measures how often the right one is picked, on pieces of validation text. Two rules: `unigram`, the
paper's, by the lowest cross-entropy under counts of training tokens, which needs no model (hence
the second form); and `model`, by the lowest cross-entropy under the trained models. Both are per
byte, so that tokenizers can be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from dept import terminal
from dept.data.corpus import GLOBAL, PreparedCorpus, read_corpus
from dept.data_prep.files import write_json
from dept.errors import ConfigError
from dept.evaluation.output import refuse_to_overwrite
from dept.evaluation.scoring.routers import RULES, Router, UnigramRouter, router_of
from dept.evaluation.scoring.validation_text import documents, pieces
from dept.log import log


def confusion(router: Router, texts: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """By source, how often each was picked for its texts, the most frequent first.

    Args:
        router: rule that picks a source.
        texts: texts by their true source.

    Returns:
        ``{true source: {picked source: number of texts}}``.
    """
    every = pd.Series(texts).explode()
    best = router.bits_per_byte(every.tolist()).argmin(axis=0)
    picked = pd.Series(np.array(router.names)[best], every.index)
    return {n: of.value_counts().to_dict() for n, of in picked.groupby(level=0, sort=False)}


def validation_pieces(
    corpus: PreparedCorpus, names: Sequence[str], size: int, most: int
) -> dict[str, list[str]]:
    """Pieces of the validation text of each source: evenly over all there are, ``most`` at most.

    Args:
        corpus: corpus of the sources.
        names: names of the sources.
        size: bytes of a piece.
        most: the most pieces of a source.

    Returns:
        Pieces by source.

    Raises:
        ConfigError: a source has no validation document of ``size`` bytes.
    """
    found = {}
    for name in names:
        every = [p for d in documents(corpus, name) for p in pieces(d.text, size)]
        if not every:
            raise ConfigError(
                f"no validation document of {name} has {size} bytes: give smaller --lengths"
            )
        places = np.linspace(0, len(every) - 1, min(most, len(every))).round().astype(int)
        found[name] = [every[place] for place in places]
    return found


def measure(
    corpus: PreparedCorpus, routers: Mapping[str, Router], lengths: Sequence[int], most: int
) -> dict[str, dict[str, Any]]:
    """Accuracies by length and rule.

    Args:
        corpus: corpus of the sources.
        routers: rules by name, all for the same sources.
        lengths: lengths of pieces, in bytes.
        most: the most pieces of a source for each length.

    Returns:
        ``{length: {rule: {accuracy, average, confusion}}}``; the average is over sources.

    Raises:
        ConfigError: a source has no validation document of one of the lengths.
    """
    found: dict[str, dict[str, Any]] = {}
    names = next(iter(routers.values())).names
    for length in lengths:
        texts, of_length = validation_pieces(corpus, names, length, most), {}
        for rule, router in routers.items():
            rows = confusion(router, texts)
            right = {name: row.get(name, 0) / sum(row.values()) for name, row in rows.items()}
            average = sum(right.values()) / len(right)
            of_length[rule] = {"accuracy": right, "average": average, "confusion": rows}
        found[str(length)] = of_length
    return found


def table(found: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Accuracy in per cent, number of pieces, and the most frequent wrong source.

    Args:
        found: result of :func:`measure`.
        title: title of the table.
    """
    view = Table(
        title=title, caption="right picks in per cent; n: pieces; in brackets: most taken for"
    )
    view.add_column("source")
    for length in found:
        view.add_column(f"n {length}", justify="right")
        for rule in found[length]:
            view.add_column(f"{rule}, {length} bytes")
    first = {length: next(iter(rules.values()))["confusion"] for length, rules in found.items()}
    for name in next(iter(first.values())):
        cells = []
        for length, rules in found.items():
            cells.append(str(sum(first[length][name].values())))
            cells += [_cell(name, result) for result in rules.values()]
        view.add_row(name, *cells)
    view.add_section()
    averages = []
    for rules in found.values():
        averages += ["", *(f"{100 * result['average']:5.1f}" for result in rules.values())]
    view.add_row("average", *averages)
    return view


def _cell(name: str, result: Mapping[str, Any]) -> str:
    wrong = [other for other in result["confusion"][name] if other != name]
    return f"{100 * result['accuracy'][name]:5.1f}" + (f" ({wrong[0]})" if wrong else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python eval/routing.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", nargs="?", help="a file, or runs/<run_name>/checkpoints")
    parser.add_argument("--corpus", help="a prepared corpus: the unigram rule alone")
    parser.add_argument("--own", action="store_true", help="in the sources' own tokenizers")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--lengths", nargs="+", type=int, default=[100, 500], help="UTF-8 bytes")
    parser.add_argument("--pieces", type=int, default=200, help="of a source, at most (200)")
    parser.add_argument("--root", type=Path, help="where data/ and tokenizers/ are")
    parser.add_argument("--device", default="cpu", help="of torch (cpu)")
    parser.add_argument("--out", type=Path, help="JSON (default: routing.json of the run's folder)")
    parser.add_argument("--force", action="store_true", help="write over what is there")
    options = parser.parse_args(arguments)
    if bool(options.checkpoint) == bool(options.corpus):
        parser.error("name a checkpoint, or a corpus with --corpus")
    if min([*options.lengths, options.pieces]) < 1:
        parser.error("--lengths and --pieces are 1 or more")
    try:
        found, where = _measured(options)
    except ValueError as error:
        log.error(error)
        return 2
    terminal.show(table(found, f"routing: {options.checkpoint or options.corpus}"))
    if where:
        write_json(where, found)
        print(where)
    return 0


def _measured(options: argparse.Namespace) -> tuple[dict[str, Any], Path | None]:
    where = options.out
    if options.corpus:
        corpus = read_corpus(options.root or ".", options.corpus)
        named = [(name, name if options.own else GLOBAL) for name in corpus.sources]
        sources = [corpus.source(*pair) for pair in named]
        refuse_to_overwrite(where, options.force)
        routers: dict[str, Router] = {"unigram": UnigramRouter(corpus, sources)}
    else:
        from dept.evaluation.models.source_models import TrainedRun

        run = TrainedRun(options.checkpoint, options.root)
        where = where or run.folder / "routing.json"
        refuse_to_overwrite(where, options.force)
        corpus = run.corpus
        routers = {rule: router_of(run, rule, options.device) for rule in options.rules}
    return measure(corpus, routers, options.lengths, options.pieces), where


if __name__ == "__main__":
    sys.exit(main())
