"""Output of commands on the terminal or into a file: sentences, and tables with uncut cells."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

_FOLDED = 16  # least width of a column whose text may be broken inside words


def say(sentence: str, style: str | None = None, console: Console | None = None) -> None:
    """Print a sentence on one line, whatever its length, so that a path in it can be copied.

    Args:
        sentence: the text; ``[...]`` in it is markup of rich.
        style: a style of rich, such as ``dim``.
        console: where it is printed; by default the standard output.
    """
    console = console or Console()
    console.print(sentence, style=style, highlight=False, soft_wrap=True)


def show(table: Table, keys: int = 1, console: Console | None = None) -> None:
    """Print a table in the width of the terminal, or of 80 columns in a file.

    Headers and texts wrap between words, values do not. Columns that do not fit are shown below, in
    a table of the same rows.

    Args:
        table: made by ``add_column`` and ``add_row``.
        keys: leading columns that name the rows, repeated in each part.
        console: to print on; standard output by default.
    """
    console = console or Console()
    for part in parts(table, keys, console.width):
        console.print(part, highlight=False)


def parts(table: Table, keys: int, width: int) -> list[Table]:
    """Split a table into several of at most ``width`` columns; each repeats the key columns.

    Args:
        table: the table; it is not changed.
        keys: number of its first columns that are repeated in every part.
        width: characters of a line of the terminal.

    Returns:
        The parts, in the order of columns. A part is wider if its columns cannot be narrower. The
        first one has the title, and the last one the caption.
    """
    limits = [_limits(column) for column in table.columns]

    def room(places: list[int]) -> int:
        return width - 3 * len(places) - 1  # padding of 2 and a line for each, and the last line

    blocks: list[list[int]] = [list(range(keys))]
    for place in range(keys, len(limits)):
        longer = [*blocks[-1], place]
        if len(blocks[-1]) > keys and sum(limits[p][0] for p in longer) > room(longer):
            longer = [*range(keys), place]
            blocks.append(longer)
        blocks[-1] = longer
    made = []
    for block in blocks:
        widths = {place: limits[place][1] for place in block}
        while sum(widths.values()) > room(block):
            place = max(block, key=lambda p: (widths[p] > limits[p][0], widths[p]))
            if widths[place] <= limits[place][0]:
                break
            widths[place] -= 1
        made.append(_part(table, widths))
    made[0].title, made[-1].caption = table.title, table.caption
    return made


def _limits(column: Column) -> tuple[int, int]:
    """Least and greatest width of a column: its longest unbreakable text, and its longest cell."""
    texts = [column.header, *column.cells]
    header, *cells = (Text.from_markup(t) if isinstance(t, str) else t for t in texts)
    words = [cell_len(word) for text in (header, *cells) for word in text.plain.split()]
    longest = max(words, default=0)
    if column.overflow == "fold":
        longest = min(longest, _FOLDED)
    if column.justify == "right":
        longest = max(longest, *(cell.cell_len for cell in cells), 0)
    return longest, max(text.cell_len for text in (header, *cells))


def _part(table: Table, widths: dict[int, int]) -> Table:
    part = Table(box=table.box)
    columns = [table.columns[place] for place in widths]
    for column, width in zip(columns, widths.values(), strict=True):
        part.add_column(column.header, justify=column.justify, width=width, overflow="fold")
    for row, cells in zip(table.rows, zip(*(c.cells for c in columns), strict=True), strict=True):
        part.add_row(*cells, style=row.style, end_section=row.end_section)
    return part
