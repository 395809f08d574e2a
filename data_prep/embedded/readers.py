"""The readers of file formats, by the name that `format:` of a source gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dept.data_prep.embedded import databases, extract, markup, roff

Reader = Callable[[bytes, Mapping[str, Any]], Iterator[extract.Passages]]

READERS: dict[str, Reader] = {
    "text": extract.read_text,
    "translations": extract.read_translations,
    "po": extract.read_po,
    "python": extract.read_python,
    "csv": extract.read_csv,
    "json": extract.read_json,
    "jsonl": extract.read_jsonl,
    "obo": extract.read_obo,
    "mediawiki": extract.read_mediawiki,
    "html": markup.read_html,
    "html_strings": markup.read_html_strings,
    "mallard": markup.read_mallard,
    "man": roff.read_man,
    "descriptions": markup.read_descriptions,
    "sqlite": databases.read_sqlite,
    "mo": databases.read_mo,
}
