"""Bits per byte of every source's text under every embedding, and under models from elsewhere:

    python eval/perplexity.py CHECKPOINT [--corpus NAME] [--out DIR]
    python eval/perplexity.py CHECKPOINT CHECKPOINT DIRECTORY HUB/NAME [--tokens HUB/NAME=300e9]

prints and saves the matrix of texts and embeddings, with a heat map; and if there are several
models, a table of them all. Text is that of the validation split, held-out sources too, read by
each model's own tokenizer. A checkpoint with an embedding for each source is listed with the
source's own, and on other text with the global one, or with the best it has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dept import terminal
from dept.checkpoint import durable
from dept.costs.__main__ import number
from dept.data.corpus import GLOBAL, PreparedCorpus, read_corpus
from dept.data_prep.files import write_json
from dept.errors import ConfigError
from dept.evaluation.output import refuse_to_overwrite
from dept.evaluation.scoring.validation_text import Document, documents
from dept.log import log

if TYPE_CHECKING:
    from dept.evaluation.models.compared_models import Compared

BYTES = 30_000

Matrix = dict[str, dict[str, dict[str, float]]]
"""By text, then by embedding: the values of a :class:`dept.evaluation.scoring.scorer.Score`."""


def measure(
    model: Compared,
    texts: Mapping[str, Sequence[Document]],
    context: int | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Every text under every embedding of one model; one embedding is in memory at a time.

    Args:
        model: to score with.
        texts: by source.
        context: tokens of a window, if fewer than the model's own.
        device: of torch.

    Returns:
        ``path``, ``tokens`` (trained on, or ``None``), ``context``, ``parameters`` (by embedding)
        and ``matrix``.
    """
    from dept.evaluation.scoring.scorer import Scorer

    matrix: Matrix = {name: {} for name in texts}
    parameters, length = {}, 0
    console = Console(stderr=True)
    progress = {"console": console, "transient": True, "disable": not console.is_terminal}
    for embedding in track(model.embeddings, model.name, **progress):
        source = model.model(embedding)
        source.model.to(device)
        scorer = Scorer(source, context)
        parameters[embedding], length = source.parameters, scorer.context
        for name, given in texts.items():
            score = scorer.documents([d.text for d in given], [d.whole for d in given])
            matrix[name][embedding] = {
                "bits_per_byte": score.bits_per_byte,
                "nats": score.nats,
                "tokens": score.tokens,
                "bytes": score.bytes,
                "unknown_bytes": score.unknown_bytes,
            }
    return {
        "path": model.path,
        "tokens": model.tokens,
        "context": length,
        "parameters": parameters,
        "matrix": matrix,
    }


def bits(matrix: Matrix) -> pd.DataFrame:
    """The bits per byte of a matrix alone: texts (rows) by embeddings (columns)."""
    return pd.DataFrame(matrix).T.map(lambda score: score["bits_per_byte"])


def listed(matrix: Matrix) -> pd.DataFrame:
    """By text (rows): the ``embedding`` that a model is listed with, and its ``bits_per_byte``.

    The embedding is the source's own, otherwise the global one, otherwise the one with the lowest
    value, which is chosen by the evaluated text itself and marked ``is_best``.
    """
    rows = bits(matrix)
    fixed = [next((n for n in (text, GLOBAL) if n in rows), None) for text in rows.index]
    chosen = [name or row.idxmin() for name, (_, row) in zip(fixed, rows.iterrows(), strict=True)]
    return pd.DataFrame(
        {
            "embedding": chosen,
            "bits_per_byte": [rows.at[pair] for pair in zip(rows.index, chosen, strict=True)],
            "is_best": [name is None and len(rows.columns) > 1 for name in fixed],
        },
        index=rows.index,
    )


def matrix_table(name: str, matrix: Matrix, corpus: PreparedCorpus) -> Table:
    """Rows are texts, held-out ones below, columns embeddings; the lowest of a row is bold.

    Args:
        name: name of the model, for the title.
        matrix: scores of each text under each embedding.
        corpus: corpus of the texts, for their order.
    """
    rows = bits(matrix)
    view = Table(title=f"{name}: bits per byte of texts (rows) under embeddings (columns)")
    view.add_column("text")
    for embedding in rows:
        view.add_column(embedding, justify="right")
    for sources, note in _parts(corpus):
        for source in sources:
            view.add_row(f"{source}{note}", *_bold(rows.loc[source]))
        view.add_section()
    return view


def models_table(found: Mapping[str, Mapping[str, Any]], corpus: PreparedCorpus) -> Table:
    """Rows are texts and what is known of models, columns models; the lowest of a row is bold.

    Args:
        found: by name of the model, its ``parameters`` (by embedding), ``tokens`` (trained on, or
            ``None``), ``context`` (in tokens) and scores.
        corpus: corpus of the texts, for their order and the title.
    """
    view = Table(
        title=f"{corpus.name}: bits per byte", caption="*: of its embeddings the best for this text"
    )
    view.add_column("text")
    for name in found:
        view.add_column(name, justify="right", overflow="fold")
    counts = [list(model["parameters"].values()) for model in found.values()]
    view.add_row("parameters", *(number(sum(c) / len(c)) for c in counts))
    tokens = [model["tokens"] for model in found.values()]
    view.add_row("tokens trained", *("unknown" if n is None else number(n) for n in tokens))
    view.add_row("context", *(f"{model['context']}" for model in found.values()))
    view.add_section()
    rows, is_best = (_of_models(found, key) for key in ("bits_per_byte", "is_best"))
    for sources, note in _parts(corpus):
        for source in sources:
            marks = ("*" if best else "" for best in is_best.loc[source])
            cells = zip(_bold(rows.loc[source]), marks, strict=True)
            view.add_row(f"{source}{note}", *map("".join, cells))
        view.add_row(f"average{note}", *_bold(rows.loc[list(sources)].mean()))
        view.add_section()
    return view


def _of_models(found: Mapping[str, Mapping[str, Any]], key: str) -> pd.DataFrame:
    return pd.DataFrame({name: listed(model["matrix"])[key] for name, model in found.items()})


def _parts(corpus: PreparedCorpus) -> list[tuple[Sequence[str], str]]:
    both = (corpus.sources, ""), (corpus.held_out, " (held out)")
    return [(sources, note) for sources, note in both if sources]


def _bold(row: pd.Series) -> list[str]:
    return [f"[bold]{v:.3f}[/bold]" if v == row.min() else f"{v:.3f}" for v in row]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print and save; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python eval/perplexity.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models",
        nargs="+",
        help="a checkpoint or runs/<run_name>/checkpoints, a transformers directory, a hub name",
    )
    parser.add_argument("--corpus", help="a prepared one (default: that of the first checkpoint)")
    parser.add_argument("--out", type=Path, help="folder (default: <run>/perplexity of the first)")
    parser.add_argument(
        "--bytes",
        type=int,
        default=BYTES,
        help=f"of text of each source, evenly over its documents ({BYTES})",
    )
    parser.add_argument("--context", type=int, help="tokens at a time (default: the model's own)")
    parser.add_argument(
        "--tokens",
        action="append",
        default=[],
        metavar="NAME=N",
        help="that a model was trained on",
    )
    parser.add_argument("--root", type=Path, help="where data/ and tokenizers/ are")
    parser.add_argument("--device", default="cpu", help="of torch (cpu)")
    parser.add_argument("--force", action="store_true", help="write over what is there")
    options = parser.parse_args(arguments)
    if options.bytes < 1:
        parser.error("--bytes is 1 or more")
    try:
        found, corpus, folder = _measured(options)
    except ValueError as error:
        log.error(error)
        return 2
    _show(found, corpus)
    _save(found, corpus, options.bytes, folder)
    return 0


def _measured(options: argparse.Namespace) -> tuple[dict[str, Any], PreparedCorpus, Path]:
    from dept.evaluation.models.compared_models import compared

    models = compared(options.models, dict(map(_tokens, options.tokens)), options.root)
    runs = [model.run for model in models if model.run is not None]
    if options.corpus:
        corpus = read_corpus(options.root or ".", options.corpus)
    elif runs:
        corpus = runs[0].corpus
    else:
        raise ConfigError("no model is a checkpoint, which would name its corpus: give --corpus")
    folder = options.out
    if folder is None:
        if models[0].run is None:
            raise ConfigError(f"{models[0].path} has no folder of a run to write to: give --out")
        folder = models[0].run.folder / "perplexity"
    refuse_to_overwrite(folder / "perplexity.json", options.force)
    texts = {s: documents(corpus, s, options.bytes) for s in corpus.sources + corpus.held_out}
    found = {m.name: measure(m, texts, options.context, options.device) for m in models}
    return found, corpus, folder


def _tokens(argument: str) -> tuple[str, float]:
    name, _, count = argument.rpartition("=")
    try:
        value = float(count)
    except ValueError:
        value = 0.0
    if not name or not value > 0:
        raise ConfigError(f"--tokens {argument} is not NAME=N, as in pythia-160m=300e9")
    return name, value


def _show(found: Mapping[str, Mapping[str, Any]], corpus: PreparedCorpus) -> None:
    for name, model in found.items():
        if len(found) == 1 or len(model["parameters"]) > 1:
            terminal.show(matrix_table(name, model["matrix"], corpus))
    if len(found) > 1:
        terminal.show(models_table(found, corpus))


def _save(
    found: Mapping[str, Mapping[str, Any]], corpus: PreparedCorpus, limit: int, folder: Path
) -> None:
    from dept.evaluation.report.heat_map import heat_map

    maps = {
        f"{name.replace('/', '--')}.png": (bits(model["matrix"]), f"{name}: ", "embedding")
        for name, model in found.items()
        if len(model["parameters"]) > 1
    }
    if len(found) > 1:
        maps["models.png"] = (_of_models(found, "bits_per_byte"), "", "model")
    labels = {name: f"{name} (held out)" for name in corpus.held_out}
    for name, (rows, of, columns) in maps.items():
        title = f"{of}bits per byte of {corpus.name}"
        durable.write(folder / name, heat_map(rows.rename(labels), title, columns))
        print(folder / name)
    models = {
        name: {
            **model,
            "listed": listed(model["matrix"]).drop(columns="is_best").to_dict("index"),
        }
        for name, model in found.items()
    }
    content = {"corpus": corpus.name, "bytes_of_a_source": limit, "models": models}
    write_json(folder / "perplexity.json", content)
    print(folder / "perplexity.json")


if __name__ == "__main__":
    sys.exit(main())
