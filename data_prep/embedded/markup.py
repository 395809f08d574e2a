"""Readers of documentation: HTML, Mallard pages, descriptions of packages.

As in dept.data_prep.embedded.extract, each is a pure function from the bytes of one file to
documents, which are lists of passages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from typing import Any

from dept.data_prep.embedded.extract import Passages, decoded

# Elements that stand within a line; every other one ends a passage.
_INLINE_TAGS = """
    a abbr acronym b bdi bdo big cite code data del dfn em font i img ins kbd label mark q ruby s
    samp small span strike strong sub sup time tt u var wbr
"""
_INLINE = frozenset(_INLINE_TAGS.split())
_EMPTY_TAGS = "area base br col embed hr img input link meta param source track wbr"
_EMPTY = frozenset(_EMPTY_TAGS.split())
_NO_TEXT = ("script", "style", "head", "template", "noscript", "svg", "math")


class _Html(HTMLParser):
    """Collects the passages of a page.

    Args:
        drop: what is left out: `tag`, `.class`, `#id`.
        keep: what alone is read, written likewise; nothing for all.
    """

    def __init__(self, drop: list[str], keep: list[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.passages: Passages = []
        self._drop, self._keep = frozenset(drop), frozenset(keep)
        self._line: list[str] = []
        self._dropped: list[Any] = ["", 0]  # the tag that is left out, and how deep we are in it
        self._kept: list[Any] = ["", 0 if keep else 1]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in _INLINE:
            self.finish()
        if tag in _EMPTY:
            return
        given = dict(attributes)
        marks = {tag, f"#{given.get('id')}", *(f".{c}" for c in (given.get("class") or "").split())}
        for state, wanted in ((self._dropped, self._drop), (self._kept, self._keep)):
            if state[1] and tag == state[0]:
                state[1] += 1
            elif not state[1] and marks & wanted:
                state[:] = [tag, 1]

    def handle_endtag(self, tag: str) -> None:
        if tag not in _INLINE:
            self.finish()
        for state in (self._dropped, self._kept):
            if state[1] and tag == state[0]:
                state[1] -= 1

    def handle_data(self, data: str) -> None:
        if self._kept[1] and not self._dropped[1]:
            self._line.append(data)

    def finish(self) -> None:
        """Ends the passage."""
        if self._line:
            text = " ".join("".join(self._line).split())
            if text:
                self.passages.append(text)
            self._line = []


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def read_html(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """A web page; passages are paragraphs, headings, list items, cells.

    Options: `drop`, elements that are left out, as `tag`, `.class` or `#id` or a list of them;
    `keep`, elements that alone are read; `encoding` as for text.

    Args:
        data: bytes of the file.
        options: options of the format, see above.

    Returns:
        One document.
    """
    page = _Html([*_NO_TEXT, *_list(options.get("drop"))], _list(options.get("keep")))
    page.feed(decoded(data, options))
    page.close()
    page.finish()
    yield page.passages


def read_mallard(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """A page of GNOME's help; passages are descriptions, titles and paragraphs.

    Args:
        data: bytes of the file.
        options: options of the format; there are none.

    Returns:
        One document.
    """
    import xml.etree.ElementTree as ElementTree

    try:
        tree = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:  # a SyntaxError, which would name no file
        raise ValueError(error) from None
    texts = (
        " ".join("".join(node.itertext()).split())
        for node in tree.iter()
        if str(node.tag).rpartition("}")[2] in ("desc", "title", "p")
    )
    yield [text for text in texts if text]


def read_descriptions(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """Debian's index of descriptions of packages; passages are titles and paragraphs.

    Args:
        data: bytes of the file.
        options: options of the format; there are none.

    Returns:
        A document for each package.
    """
    for stanza in data.decode("utf-8").split("\n\n"):
        found = re.search(r"^Description-[\w@]+: (.*(?:\n .*)*)", stanza, re.MULTILINE)
        if not found or "Description-md5:" not in stanza:
            continue
        title, *lines = found[1].split("\n")
        # Lines that are indented more are lists, and stay lines.
        text = "\n".join("" if line == " ." else line[1:] for line in lines)
        blocks = re.split(r"\n\n+|\n(?= *[*-] )", text)
        yield [title, *(" ".join(block.split()) for block in blocks if block.strip())]
