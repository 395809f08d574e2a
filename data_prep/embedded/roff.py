"""Reader of manual pages, which are written in roff.

As in dept.data_prep.embedded.extract, it is a pure function from the bytes of one file to
documents, which are lists of passages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dept.data_prep.embedded.extract import Passages, decoded, flowing

# What the escapes of roff stand for.
_CHARACTERS = {
    **{"aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "Fo": "«", "Fc": "»"},  # noqa: RUF001
    **{"em": "—", "en": "–", "hy": "-", "mi": "−", "bu": "•", "co": "©", "rg": "®", "tm": "™"},  # noqa: RUF001
    **{"rs": "\\", "ti": "~", "ha": "^", "ga": "`", "at": "@", "sh": "#", "Do": "$", "ba": "|"},
    **{"->": "→", "<-": "←", ">=": "≥", "<=": "≤", "!=": "≠", "+-": "±", "mu": "×", "de": "°"},  # noqa: RUF001
    **{"ss": "ß", "'e": "é", "`e": "è", "^e": "ê", ":a": "ä", ":o": "ö", ":u": "ü", ",c": "ç"},
    **{"lB": "[", "rB": "]", "lC": "{", "rC": "}", "sl": "/", "ul": "_", "eu": "€", "Po": "£"},
}
_ESCAPE = re.compile(
    r"\\(?:"
    r"[fFmMgkn](?:\[[^\]\n]*\]|\(..|[+-]?.)"  # fonts, colours, registers
    r"|s(?:[+-]?\d\d?|[+-]?\[[^\]\n]*\]|\([+-]?..)"  # sizes
    r"|[hvwXNlLDoxbS]'[^'\n]*'"  # motions, widths, drawings
    r"|\*?\[(?P<long>[^\]\n]*)\]|\*?\((?P<two>..)|\*(?P<one>.)"  # characters and strings
    r"|(?P<plain>.)|$)"
)
_COMMENT = re.compile(r"\\[\"#].*$", re.MULTILINE)
_HEADING = frozenset(("SH", "SS", "Sh", "Ss"))
_BREAK_MACROS = "PP P LP TP TQ IP HP RS RE br sp Pp It Bl El Bd Ed UR UE MT ME ti in ad nh hy na"
_BREAK = frozenset(_BREAK_MACROS.split())
_FONT = frozenset(("B", "I", "SM", "SB"))  # arguments with spaces between
_FONTS = frozenset(("BR", "RB", "IR", "RI", "BI", "IB"))  # and without
_SKIPPED = {"nf": "fi", "EX": "EE", "TS": "TE", "EQ": "EN", "PS": "PE", "de": ".", "ig": "."}
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|(\S+)')


def _unescaped(text: str) -> str:
    def character(found: re.Match) -> str:
        name = found["long"] or found["two"] or found["one"]
        if name is not None:
            if re.fullmatch(r"u[0-9A-F]{4,6}", name) and int(name[1:], 16) < 0x110000:
                return chr(int(name[1:], 16))
            return _CHARACTERS.get(name, "")
        plain = found["plain"]
        if plain is None or plain in "&/|^%:c)!":
            return ""
        return {"-": "-", "e": "\\", "~": " ", "0": " ", "t": " ", "'": "'", "`": "`"}.get(
            plain, plain
        )

    return _ESCAPE.sub(character, text)


def read_man(data: bytes, options: Mapping[str, Any]) -> Iterator[Passages]:
    """A manual page in roff with the macros of man (of mdoc, plain lines alone); passages are
    paragraphs and headings.

    Examples, tables and definitions of macros are left out. A page that only refers to another one
    (`.so`) is empty. Option `encoding` as for text.

    Args:
        data: bytes of the file.
        options: options of the format, see above.

    Returns:
        One document.
    """
    passages: Passages = []
    lines: list[str] = []
    until = ""  # the macro that ends what is skipped

    def finish() -> None:
        text = flowing(lines)
        if text:
            passages.append(text)
        lines.clear()

    for line in _COMMENT.sub("", decoded(data, options)).split("\n"):
        if not line.startswith((".", "'")):
            if not line.strip():
                finish()
            elif not until:
                lines.append(_unescaped(line))
            continue
        name, _, rest = line[1:].strip().partition(" ")
        if until:
            until = "" if name == until else until
            continue
        if name in _SKIPPED:
            finish()
            until = _SKIPPED[name]
            continue
        words = [_unescaped(quoted or plain) for quoted, plain in _ARGUMENT.findall(rest)]
        if name in _HEADING:
            finish()
            lines.append(" ".join(words))
            finish()
        elif name in _BREAK:
            finish()
        elif name in _FONT:
            lines.append(" ".join(words))
        elif name in _FONTS:
            lines.append("".join(words))
    finish()
    yield passages
