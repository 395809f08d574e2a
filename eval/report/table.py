"""A table, whatever it is shown in, and how it looks in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dept.evaluation.report.names import TOPICS


@dataclass(frozen=True)
class Cell:
    """What stands in a place of a table; ``best`` in bold."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table, whatever it is shown in.

    Attributes:
        corpus: the part of the report it belongs to; empty if to all.
        topic: a key of ``names.TOPICS``.
        head: a column's name and a note to it, which may be empty.
        rows: the first cell names the row.
        parts: rows before which a line is drawn.
        texts: columns on the left that hold text; others hold values.
    """

    corpus: str
    topic: str
    title: str
    caption: str
    head: list[tuple[str, str]]
    rows: list[list[Cell]]
    parts: tuple[int, ...] = ()
    texts: int = 1


def plain(
    corpus: str,
    topic: str,
    title: str,
    caption: str,
    head: Iterable[str],
    rows: list[list[Cell]],
    parts: tuple[int, ...] = (),
    texts: int = 1,
) -> list[Table]:
    """A table of a corpus whose columns have no notes; none at all without rows."""
    if not rows:
        return []
    heads = [(name, "") for name in head]
    return [Table(corpus, topic, f"{corpus}, {title}", caption, heads, rows, parts, texts)]


def markdown(table: Table) -> str:
    """The table in Markdown, with its title and caption."""

    def line(texts: Iterable[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    head = [f"{name} ({note})" if note else name for name, note in table.head]
    rows = [[f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in table.rows]
    rule = "|" + "---|" * table.texts + "---:|" * (len(head) - table.texts)
    lines = [line(head), rule, *map(line, rows)]
    return f"**{table.title}**\n\n" + "\n".join(lines) + f"\n\n{table.caption}\n"


def document(tables: list[Table]) -> str:
    """All tables as one Markdown document."""
    parts, corpus, topic = ["# Results\n"], "", ""
    for table in tables:
        if table.corpus != corpus:
            corpus, topic = table.corpus, ""
            parts.append(f"## {corpus}\n")
        if table.topic != topic:
            topic = table.topic
            parts.append(f"{'###' if corpus else '##'} {TOPICS[topic]}\n")
        parts.append(markdown(table))
    return "\n".join(parts)
