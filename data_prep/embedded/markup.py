"""Readers of documentation: HTML, Mallard pages, descriptions of packages.

As in dept.data_prep.embedded.extract, each is a pure function from the bytes of one file to
documents, which are lists of passages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dept.data_prep.embedded.extract import Passages, decoded, flowing, read_translations

# Elements that stand within a line; every other one ends a passage.
_INLINE_TAGS = """
    a abbr acronym b bdi bdo big cite code data del dfn em font i img ins kbd label mark q ruby s
    samp small span strike strong sub sup time tt u var wbr
"""
_INLINE = _INLINE_TAGS.split()
_NO_TEXT = ["head", "math", "noscript", "script", "style", "svg", "template"]
_END = "\x1f"  # of a passage; no text has it


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _blocks(text: str, options: Mapping[str, Any]) -> Passages:
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(text)
    for node in tree.css(", ".join([*_NO_TEXT, *_list(options.get("drop"))])):
        node.decompose()
    for node in tree.css("br"):
        node.replace_with(_END)
    tree.unwrap_tags(_INLINE, delete_empty=True)
    roots = tree.css(", ".join(_list(options.get("keep")) or ["body"]))
    found: Passages = []
    for root in roots:
        root.merge_text_nodes()
        found += (" ".join(block.split()) for block in root.text(separator=_END).split(_END))
    return [block for block in found if block]


def read_html(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """A web page; passages are paragraphs, headings, list items, cells.

    Options: `drop`, selectors of CSS, one or a list, of elements that are left out; `keep`, the
    same of elements that alone are read; `encoding` as for text.

    Args:
        data: bytes of the file.
        options: options of the format, see above.

    Returns:
        One document.
    """
    yield _blocks(decoded(data, options), options)


def read_html_strings(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """JSON whose strings are pieces of web pages; options as for translations and html.

    Args:
        data: bytes of the file.
        options: options of the format, see above.

    Returns:
        One document; passages are the paragraphs of the strings.
    """
    for strings in read_translations(data, options):
        yield [block for text in strings for block in _blocks(text, options)]


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
        found = re.search(r"^Description-(?!md5:)[\w@]+: (.*(?:\n .*)*)", stanza, re.MULTILINE)
        if not found or "Description-md5:" not in stanza:
            continue
        title, *lines = found[1].split("\n")
        # Lines that are indented more are lists, and stay lines.
        text = "\n".join("" if line == " ." else line[1:] for line in lines)
        blocks = re.split(r"\n\n+|\n(?= *[*-] )", text)
        yield [title, *(flowing(block.split("\n")) for block in blocks if block.strip())]
