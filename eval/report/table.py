"""A table that does not depend on its output format, and its form in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dept.evaluation.report.names import TOPICS


@dataclass(frozen=True)
class Cell:
    """A cell of a table; ``best`` is shown in bold.

    Attributes:
        text: text of the cell.
        best: whether it is the best value.
    """

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table, whatever it is shown in.

    Attributes:
        corpus: the part of the report it belongs to; empty if to all.
        topic: a key of ``names.TOPICS``.
        head: a column's name and a note to it, which may be empty; or the name alone.
        rows: the first cell names the row; one without a best value may be a text.
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

    def __post_init__(self) -> None:
        head = [name if isinstance(name, tuple) else (name, "") for name in self.head]
        rows = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in self.rows]
        object.__setattr__(self, "head", head)
        object.__setattr__(self, "rows", rows)


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
