"""The table that a preparation prints at its end."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table

from dept.data.corpus import GLOBAL, SPLITS, read_corpus


def summary_table(root: Path, name: str) -> Table:
    """Sizes of a prepared corpus, a row for each source and tokenizer.

    Args:
        root: folder that holds `data/` and `tokenizers/`.
        name: name of the corpus.
    """
    corpus = read_corpus(root, name)
    table = Table("source", "tokenizer", box=box.SIMPLE)
    table.title = f"samples of {corpus.sequence_length} tokens"
    table.caption = "train, val: MB of text; |V_k|: ids that occur; nats: unigram cross-entropy"
    for column in ("train", "samples", "val", "samples", "|V_k|", "|V|", "bytes/token", "nats"):
        table.add_column(column, justify="right")
    for source in corpus.sources + corpus.held_out:
        for tokenizer in (GLOBAL, source) if source in corpus.tokenizers else (GLOBAL,):
            stats = corpus.source(source, tokenizer)
            train, val = (stats.splits[s] for s in SPLITS)
            sizes = [x for s in (train, val) for x in (f"{s.bytes / 1e6:.2f}", f"{s.samples}")]
            vocabularies = f"{stats.local_vocab_size}", f"{stats.vocab_size}"
            rates = f"{train.bytes / train.tokens:.2f}", f"{stats.unigram_ce:.3f}"
            names = (source, "global") if tokenizer == GLOBAL else ("", "own")
            table.add_row(*names, *sizes, *vocabularies, *rates)
    return table
