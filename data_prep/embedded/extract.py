"""Readers of file formats: the bytes of one file in, documents out, as lists of passages.

One small pure function a format. Options are the other keys of the source that the reader
documents. A reader raises ValueError in one sentence when the bytes are not of its format; the
caller adds the name of the file.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Passages = list[str]


def decoded(data: bytes, options: Mapping[str, Any]) -> str:
    """The text of a file.

    Args:
        data: bytes of the file.
        options: `encoding` (default utf-8), or a list of encodings of which the first that fits is
            taken.
    """
    encodings = options.get("encoding", "utf-8")
    *first, last = [encodings] if isinstance(encodings, str) else encodings
    for encoding in first:
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode(encoding)
    return data.decode(last)


_BETWEEN_CHARACTERS = re.compile(
    r"(?<=[\u3000-\u9fff\uff00-\uffef])\n(?=[\u3000-\u9fff\uff00-\uffef])"
)


def flowing(lines: Iterable[str]) -> str:
    """Lines as one, with a space between; between Chinese and Japanese characters without one.

    Args:
        lines: lines of a paragraph.
    """
    text = "\n".join(" ".join(line.split()) for line in lines)
    return " ".join(_BETWEEN_CHARACTERS.sub("", text).split())


def paragraphs(text: str, options: Mapping[str, Any]) -> Passages:
    """Blocks of lines between blank lines; what the expressions of option `remove` find is cut.

    Args:
        text: the text to cut.
        options: `remove` is a regular expression or a list of them.
    """
    text = text.replace("\r\n", "\n")
    remove = options.get("remove", [])
    for pattern in [remove] if isinstance(remove, str) else remove:
        text = re.sub(pattern, "", text, flags=re.MULTILINE)
    return [block.strip("\n") for block in re.split(r"\n(?:[^\S\n]*\n)+", text) if block.strip()]


def read_text(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """Plain text; passages are paragraphs.  Options `encoding` (see decoded), `remove`, and
    `lines: true` where each line is a passage.

    Args:
        data: bytes of the file.
        options: options of the format, see above.

    Returns:
        One document.
    """
    found = paragraphs(decoded(data, options), options)
    yield [line for p in found for line in p.split("\n")] if options.get("lines") else found


def read_translations(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """JSON whose values, nested at will, are strings of a user interface or of documentation.

    Options: `keys`, of the strings that are read (default: all strings); `where` (key: value or
    list of values): mappings that have the key with another value are left out, with all in them.

    Args:
        data: bytes of the file.
        options: options of the format, see above.

    Returns:
        One document; passages are the strings.
    """

    keys, where = options.get("keys"), options.get("where", {})

    def strings(node: Any, is_read: bool) -> Iterator[str]:
        if isinstance(node, str):
            if is_read:
                yield node
        elif isinstance(node, Mapping):
            for key, wanted in where.items():
                if key in node and node[key] not in (
                    wanted if isinstance(wanted, list) else [wanted]
                ):
                    return
            for key, value in node.items():
                yield from strings(value, keys is None or key in keys)
        elif isinstance(node, list):
            for value in node:
                yield from strings(value, is_read)

    yield list(strings(json.loads(data), keys is None))


def read_po(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """GNU gettext: translated strings that are current, not fuzzy, and differ from the original.

    Args:
        data: bytes of the file.
        options: options of the format; there are none.

    Returns:
        One document; passages are the translated strings.
    """
    import polib

    found: Passages = []
    for entry in polib.pofile(data.decode("utf-8")):
        if not entry.obsolete and not entry.fuzzy:
            originals = (entry.msgid, entry.msgid_plural)
            found += [
                text
                for text in (entry.msgstr, *entry.msgstr_plural.values())
                if text and text not in originals
            ]
    yield found


def read_python(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """Source code with indentation; passages are what stands at the left margin: imports,
    functions, classes.

    Args:
        data: bytes of the file.
        options: options of the format; there are none.

    Returns:
        One document.
    """
    text = data.decode("utf-8").replace("\r\n", "\n").expandtabs(4)
    text = re.sub(r"\A(?:#[^\n]*\n|\s*\n)+", "", text)  # shebang, coding and licence header
    yield [block.strip("\n") for block in re.split(r"\n{2,}(?=[^\s)\]}])", text) if block.strip()]


def records(rows: Iterable[Any], options: Mapping[str, Any]) -> Iterator[Passages]:
    """Passages of records, which are rows of a table.

    Args:
        rows: the records, indexed by name or number.
        options: `columns` has the names or numbers of those that are read. Consecutive records with
            equal `group_by` columns are one document; without `group_by` each record is one.
            `remove` as in paragraphs; `unescape: true` where line breaks are written as a backslash
            and an n.
    """

    def cell(text: str | None) -> Passages:
        text = text or ""
        if options.get("unescape"):
            text = text.replace("\\r", "").replace("\\n", "\n")
        return paragraphs(text, options)

    def group(numbered: tuple[int, Any]) -> Any:
        number, row = numbered
        return [row[key] for key in options["group_by"]] if "group_by" in options else number

    for _, numbered in itertools.groupby(enumerate(rows), group):
        passages = [p for _, row in numbered for key in options["columns"] for p in cell(row[key])]
        if passages:
            yield passages


def read_csv(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """Tables; passages are the paragraphs of the `columns`.

    Options: `columns`, `group_by`, `remove` (see records; names need `header: true`), `delimiter`
    (default a comma; with a tab quotes are ordinary characters), `encoding`, `unescape: true` where
    line breaks are written as a backslash and an n.

    Args:
        data: bytes of the file.
        options: options of the format, see above.

    Returns:
        A document for each group of rows.
    """
    text = io.StringIO(decoded(data, options), newline="")
    delimiter = options.get("delimiter", ",")
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    read = csv.DictReader if options.get("header") else csv.reader
    csv.field_size_limit(2**30)
    yield from records(read(text, delimiter=delimiter, quoting=quoting), options)


def read_json(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """A list of records, at the top or under the key `records`; options `columns`, `group_by`,
    `remove` as for csv.

    Args:
        data: bytes of the file.
        options: options of the format, see above; `records` is the key of the list.

    Returns:
        A document for each group of records.
    """
    tree = json.loads(data)
    yield from records(tree[options["records"]] if "records" in options else tree, options)


def read_jsonl(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """One record a line; options `columns`, `group_by`, `remove` as for csv.

    Args:
        data: bytes of the file.
        options: options of the format, see above.

    Returns:
        A document for each group of records.
    """
    yield from records(
        (json.loads(line) for line in data.decode("utf-8").splitlines() if line.strip()), options
    )


def read_obo(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """An ontology; passages are terms that have a definition: `Name. Definition. Comment.`

    Args:
        data: bytes of the file.
        options: options of the format; there are none.

    Returns:
        One document.
    """

    def value(stanza: str, tag: str) -> str:
        quoted = re.search(rf'^{tag}: "((?:[^"\\]|\\.)*)"', stanza, re.M) or re.search(
            rf"^{tag}: (.*)$", stanza, re.M
        )
        return (
            re.sub(r"\\(.)", lambda m: {"n": " ", "t": " "}.get(m[1], m[1]), quoted[1]).strip()
            if quoted
            else ""
        )

    terms: Passages = []
    for stanza in data.decode("utf-8").split("\n\n"):
        if (
            stanza.lstrip().startswith("[Term]")
            and "is_obsolete: true" not in stanza
            and value(stanza, "def")
        ):
            parts = (value(stanza, tag).rstrip(".") for tag in ("name", "def", "comment"))
            terms.append(". ".join(part for part in parts if part) + ".")
    yield terms


_HOLE = "\ufffc"  # marks a removed formula; its paragraph is dropped


def wikitext(source: str) -> Passages:
    """The paragraphs of an article in MediaWiki's language: no templates, tables, references,
    images or headings."""
    import mwparserfromhell

    code = mwparserfromhell.parse(
        re.sub(r"<!--.*?-->|\{\|.*?\n\|\}", "", source, flags=re.S), skip_style_tags=True
    )
    for node in [
        *code.filter_templates(recursive=False),
        *code.filter_tags(
            recursive=False,
            matches=lambda tag: str(tag.tag).lower() in ("ref", "table", "gallery", "math", "div"),
        ),
    ]:
        with contextlib.suppress(ValueError):  # it went with the node around it
            code.replace(node, _HOLE if str(getattr(node, "tag", "")).lower() == "math" else "")
    for link in code.filter_wikilinks():
        if ":" in str(link.title).lstrip(":").split("#")[0] and re.match(
            r":?(\w[\w-]{1,20}):\S", str(link.title)
        ):
            with contextlib.suppress(ValueError):  # images, categories, other languages
                code.remove(link)
    text = re.sub(r"'{2,}", "", code.strip_code(normalize=True, collapse=True))
    text = re.split(
        r"\n\s*(?:See also|Notes|Footnotes|References|Sources|Bibliography|Further reading"
        r"|External links)\s*\n",
        text,
    )[0]
    lines = (re.sub(r"\(\s*[;,]*\s*\)|\[\s*\]", "", line).strip() for line in text.split("\n"))
    return [line for line in lines if line and line[0] not in "|!{}=*#:;<," and _HOLE not in line]


def read_mediawiki(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """An XML dump of a wiki; a document an article (redirects and pages outside the main name space
    are left out).

    Args:
        data: bytes of the file.
        options: options of the format; there are none.

    Returns:
        A document for each article: its title, then the passages of its text.
    """
    import xml.etree.ElementTree as ElementTree

    for _, element in ElementTree.iterparse(io.BytesIO(data)):
        if element.tag.rpartition("}")[2] != "page":
            continue
        fields = {node.tag.rpartition("}")[2]: node.text or "" for node in element.iter()}
        if fields.get("ns", "0") == "0" and not fields["text"].lstrip().lower().startswith(
            "#redirect"
        ):
            yield [fields["title"], *wikitext(fields["text"])]
        element.clear()
