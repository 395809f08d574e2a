"""Text cleaning: passages in, documents out.

Pure functions of their arguments.

A *passage* is the unit that is cleaned and de-duplicated (a translated string, a paragraph, a
verse); a *document* is the unit that is split into train and validation (the strings of one
component, an article).  A passage is kept once in a source, so whatever the split does with the
documents, no validation passage was trained on.

    >>> list(documents([["Open the  door.", "Open the door!", "%s"]], Rules(min_document_chars=0)))
    ['Open the door.']
"""

from __future__ import annotations

import dataclasses
import functools
import html
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import xxhash

# Words that are frequent in English and are words of (almost) no other Latin-script language; "is",
# "an", "to", "in", "for" are left out because they are words of German, Irish or Finnish too.
_ENGLISH = (
    "and are be been can cannot could does from has have if it its not of or please should that the"
    " their then there these they this to was when which will with you your"
)
ENGLISH = frozenset(_ENGLISH.split())

# Control characters, surrogates, private use, and what has no width.  Written out: Unicode's
# categories differ between versions of Python, and the text must not.  Joiners (U+200C, U+200D)
# stay, Hindi is spelt with them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069"
    "\ud800-\uf8ff\ufeff\ufffc]"
)
_LINK = re.compile(r"!?[\[【]([^\]】\n]*)[\]】]\s?[(\uff08][^()\uff08\uff09\n]*[)\uff09]")
_TAG = re.compile(r"</?[A-Za-z][^<>\n]{0,200}>")
_EMPHASIS = re.compile(r"\*\*|__|`")
_ENTITY = re.compile(r"&(?:#\d+|#x[0-9a-fA-F]+|[A-Za-z]{2,8});")
_PLACEHOLDER = re.compile(
    r"[{}]"  # {name}, {{ jinja }}, ICU {n, plural, ...}
    r"|\$[A-Za-z_]"  # $name
    r"|%\(\w+\)?|%%|%[-0-9.]*[sdiuxf]\b"  # %(name)s, %s, %-5d
    r"|\[%|<[A-Za-z/]"  # [%key:...%], markup that was not closed
    r"|&[A-Za-z]{2,8};"
)
# A word; in Chinese and Japanese, which do not part words, a character.  Vowel signs of Indian
# scripts are no word characters to `re`.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|(?:[^\W\u3040-\u30ff\u3400-\u9fff]|[\u0900-\u0dff])+"
)
_LATIN_WORD = re.compile(r"[^\W\d_]+")
_URL = re.compile(r"(?:https?|ftp)://|www\.|\S+@\S+\.\w")


@dataclasses.dataclass(frozen=True)
class Rules:
    """How the passages of a source are cleaned; the keys of `clean:` in a corpus yaml.

    Attributes:
        min_chars: characters below which a passage is dropped.
        min_letters: share, 0 to 1, of the characters other than white space that must be letters.
        script: first word of the Unicode names of the language's letters (LATIN, CYRILLIC, CJK
            ...), several of them with a space between; at least half of a passage's letters must be
            of them.  Empty: any.
        english: share of a passage's words, 0 to 1, that may be English function words.  1 keeps
            everything.
        markup: `strip` links, tags and emphasis and drop what holds a placeholder or a URL, or
            `keep` all.
        layout: `flow` runs of white space become one space, or `keep` line breaks and indentation
            (code, mathematics).
        exact: True where passages are duplicates only if they are equal (arithmetic); else see
            `key`.
        novelty: share, 0 to 1, of the runs of five words of a passage that no passage before it
            had; below it the passage is dropped as a near-duplicate.
        separator: what joins the passages of a document.
        min_document_chars: documents are joined with the following ones of the source until they
            have as many.
        max_document_chars: a longer document is cut between two passages.
    """

    min_chars: int = 1
    min_letters: float = 0.0
    script: str = ""
    english: float = 1.0
    markup: str = "strip"
    layout: str = "flow"
    exact: bool = False
    novelty: float = 0.0
    separator: str = "\n"
    min_document_chars: int = 200
    max_document_chars: int = 20_000

    def __post_init__(self) -> None:
        for key, allowed in (("markup", ("strip", "keep")), ("layout", ("flow", "keep"))):
            if getattr(self, key) not in allowed:
                raise ValueError(
                    f"clean.{key} is {getattr(self, key)!r}; write one of: {', '.join(allowed)}."
                )

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> Rules:
        """Rules from the `clean:` block of a source; ValueError for a key that is no field."""
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(settings or {}) - set(names))
        if unknown:
            raise ValueError(
                f"clean.{unknown[0]} is not a cleaning rule; write one of: {', '.join(names)}."
            )
        return cls(**(settings or {}))


def normalise(text: str, layout: str = "flow") -> str:
    """NFC, \\n line ends, no invisible characters; `flow`: single spaces and no blank lines too.

    Args:
        text: the text to clean.
        layout: `flow`, or `keep`, which keeps indentation and single blank lines.
    """
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    if not text.isprintable() or "\ufffc" in text:  # else there is nothing invisible
        text = _INVISIBLE.sub("", text)
    if layout == "keep":
        text = "\n".join(line.rstrip() for line in text.split("\n"))
        return re.sub(r"\n{3,}", "\n\n", text).strip("\n")
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def strip_markup(text: str) -> str:
    """The words of a marked-up string: no links, tags and emphasis; entities become characters.

    `[text](target)` becomes text, but a link that is a whole sentence ("Learn more.") is removed
    with its text, since hundreds of strings end in one.
    """
    text = _LINK.sub(lambda link: "" if link[1].rstrip().endswith((".", "。")) else link[1], text)
    text = _EMPHASIS.sub("", text)
    text = _TAG.sub("", text)
    return html.unescape(text) if _ENTITY.search(text) else text


def has_placeholder(text: str) -> bool:
    """True where a program fills something in ({name}, %s, ICU plurals) or where a URL stands."""
    return bool(_PLACEHOLDER.search(text) or _URL.search(text))


class _Kept(dict[int, int | None]):
    """A table for `str.translate`, many times faster than a loop, that keeps some characters alone.

    Args:
        is_kept: called once for each character.
    """

    def __init__(self, is_kept: Callable[[str], bool]) -> None:
        self._is_kept = is_kept

    def __missing__(self, code: int) -> int | None:
        self[code] = code if self._is_kept(chr(code)) else None
        return self[code]


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"


_LETTERS = _Kept(_is_letter)
_LETTERS_AND_ZEROS = _Kept(lambda c: c == "0" or _is_letter(c))


@functools.cache
def _of_scripts(scripts: frozenset[str]) -> _Kept:
    return _Kept(lambda c: _is_letter(c) and unicodedata.name(c, "").split(" ")[0] in scripts)


def letters(text: str) -> str:
    """Letters of a text, and the marks on them."""
    return text.translate(_LETTERS)


def of_script(found: str, scripts: Collection[str]) -> bool:
    """True where half of the letters or more are of the scripts.

    Args:
        found: the letters of a text.
        scripts: first words of Unicode names, such as LATIN.
    """
    if found.isascii() and "LATIN" in scripts:
        return bool(found)
    return 2 * len(found.translate(_of_scripts(frozenset(scripts)))) >= max(len(found), 1)


def english_share(text: str) -> float:
    """Share, 0 to 1, of the words of a text that are English function words."""
    words = _LATIN_WORD.findall(text.lower())
    return sum(map(ENGLISH.__contains__, words)) / max(len(words), 1)


def key(passage: str) -> str:
    """The key of duplicates: letters without case, numbers without value.

    A passage without letters is compared as it is.
    """
    folded = re.sub(r"\d+", "0", unicodedata.normalize("NFKC", passage).casefold())
    letters = folded.translate(_LETTERS_AND_ZEROS)
    return letters if letters.strip("0") else passage


def runs(text: str, words: int = 5) -> set[str]:
    """The runs of so many words in a row of a text, in lower case; a shorter text is one run.

    Args:
        text: the text to look at.
        words: words of a run.
    """
    found = _WORD.findall(text.lower())
    return {" ".join(found[i : i + words]) for i in range(max(len(found) - words + 1, 1))}


def clean(passage: str, rules: Rules) -> str:
    """The passage as the rules want it, or the empty string where they drop it.

    Args:
        passage: the passage to clean.
        rules: the rules of its source.
    """
    text = passage
    if rules.markup == "strip":
        text = strip_markup(text)
        if has_placeholder(text):
            return ""
    text = normalise(text, rules.layout)
    if len(text) < rules.min_chars:
        return ""
    found = letters(text) if rules.min_letters or rules.script else ""
    is_dropped = (
        len(found) < rules.min_letters * len("".join(text.split()))
        or (rules.script and not of_script(found, rules.script.split()))
        or (rules.english < 1 and english_share(text) > rules.english)
    )
    return "" if is_dropped else text


def documents(
    groups: Iterable[Iterable[str]], rules: Rules, skip: Iterable[str] = ()
) -> Iterator[str]:
    """Cleans, de-duplicates and joins passages into documents.

    Args:
        groups: passages of one document after another.
        rules: what is kept.
        skip: passages that are dropped wherever they occur (untranslated originals); compared by
            `key`.

    Yields:
        Documents in the order of `groups`, none empty.  Each passage occurs once in all of them
        together.
    """

    def identity(text: str) -> bytes:
        """A hash, so that the passages of a large source fit in memory."""
        same = text if rules.exact else key(text)
        return xxhash.xxh3_128_digest(same.encode(errors="surrogatepass"))

    seen = {identity(normalise(strip_markup(text))) for text in skip}
    seen_runs: set[int] = set()
    waiting: list[str] = []
    length = 0  # characters of `waiting`
    for group in groups:
        for passage in group:
            text = clean(passage, rules)
            if not text or (mark := identity(text)) in seen:
                continue
            seen.add(mark)
            if rules.novelty:
                now = {xxhash.xxh3_64_intdigest(run) for run in runs(text)}
                if len(now - seen_runs) < rules.novelty * len(now):
                    continue
                seen_runs |= now
            if waiting and length + len(text) > rules.max_document_chars:
                yield rules.separator.join(waiting)
                waiting, length = [], 0
            waiting.append(text)
            length += len(text) + len(rules.separator)
        if waiting and length >= rules.min_document_chars:
            yield rules.separator.join(waiting)
            waiting, length = [], 0
    if waiting:
        yield rules.separator.join(waiting)
