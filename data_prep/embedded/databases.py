"""Readers of binary files: SQLite databases and compiled catalogues of translations.

As in dept.data_prep.embedded.extract, each is a function from the bytes of one file to documents,
which are lists of passages.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dept.data_prep.embedded.extract import Passages, records


def read_sqlite(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """A table of an SQLite database, in the order of its rows.

    Options: `table`, `where` (column: value or list of values), `columns`, `group_by`, `remove` as
    for csv.

    Args:
        data: bytes of the file.
        options: options of the format, see above.

    Returns:
        A document for each group of rows.
    """

    def quoted(name: str) -> str:
        return '"' + str(name).replace('"', '""') + '"'

    where = {k: v if isinstance(v, list) else [v] for k, v in options.get("where", {}).items()}
    wanted = [f"{quoted(k)} in ({', '.join('?' * len(v))})" for k, v in where.items()]
    columns = dict.fromkeys([*options["columns"], *options.get("group_by", [])])
    query = f"select {', '.join(map(quoted, columns))} from {quoted(options['table'])}"
    query += f" where {' and '.join(wanted)}" if wanted else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.db"
        path.write_bytes(data)
        uri = f"{path.as_uri()}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
            database.row_factory = sqlite3.Row
            try:
                database.execute("pragma trusted_schema = off")  # a view may call functions
                table = database.execute(f"select * from {quoted(options['table'])} limit 0")
                names = [column[0] for column in table.description]
                for name in {*columns, *where} - {*names}:  # which SQLite takes for a string
                    raise ValueError(f"no column {name}, but {', '.join(names)}")
                values = list(itertools.chain.from_iterable(where.values()))
                found = database.execute(f"{query} order by rowid", values)
                yield from records(found, options)
            except sqlite3.Error as error:
                raise ValueError(error) from None


def read_mo(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """A compiled catalogue of GNU gettext: translations that differ from the original.

    With `originals: true` the originals are read instead.

    Args:
        data: bytes of the file.
        options: options of the format, see above.

    Returns:
        One document; passages are the strings, in the order of the catalogue.
    """
    import polib

    found: Passages = []
    for entry in polib.mofile(data):
        originals = (entry.msgid, entry.msgid_plural)
        texts = originals if options.get("originals") else (entry.msgstr, *_plurals(entry))
        found += [t for t in texts if t and (options.get("originals") or t not in originals)]
    yield found


def _plurals(entry: Any) -> list[str]:
    return [entry.msgstr_plural[number] for number in sorted(entry.msgstr_plural)]
