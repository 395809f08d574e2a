"""The table that a preparation ends with."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table

from dept.data.corpus import GLOBAL, SPLITS, read_corpus


def summary_table(root: Path, name: str) -> Table:
    """What a prepared corpus holds, a row for each source and tokenizer."""
    corpus = read_corpus(root, name)
    table = Table(title=f"samples of {corpus.sequence_length} tokens", box=box.SIMPLE)
    for column in ("source", "tokenizer"):
        table.add_column(column)
    for column in ("train", "samples", "val", "samples", "|V_k|", "|V|", "bytes/token", "nats"):
        table.add_column(column, justify="right")
    table.caption = "train, val: MB of text; |V_k|: ids that occur; nats: unigram cross-entropy"
    for source in corpus.sources + corpus.held_out:
        for tokenizer in (GLOBAL, source):
            if tokenizer != GLOBAL and tokenizer not in corpus.tokenizers:
                continue
            stats = corpus.source(source, tokenizer)
            train, val = (stats.splits[s] for s in SPLITS)
            table.add_row(
                source if tokenizer == GLOBAL else "",
                "global" if tokenizer == GLOBAL else "own",
                f"{train.bytes / 1e6:.2f}",
                f"{train.samples}",
                f"{val.bytes / 1e6:.2f}",
                f"{val.samples}",
                f"{stats.local_vocab_size}",
                f"{stats.vocab_size}",
                f"{train.bytes / train.tokens:.2f}",
                f"{stats.unigram_ce:.3f}",
            )
    return table
