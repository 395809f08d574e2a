"""Kinds of values of a yaml, and the error about a value of another kind."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dept.errors import ConfigError, is_number, shown

LARGEST = 2**31 - 1
"""The largest count or seed that numpy and torch accept everywhere."""


@dataclass(frozen=True)
class Kind:
    """A kind of values; ``a | b`` has the values of both kinds.

    Attributes:
        expected: description of the values, which follows "set it to" in errors.
        fits: returns whether a value is of this kind.
    """

    expected: str
    fits: Callable[[Any], bool]

    def __or__(self, other: Kind) -> Kind:
        return Kind(
            f"{self.expected}, or {other.expected}", lambda v: self.fits(v) or other.fits(v)
        )

    def check(self, key: str, value: Any) -> None:
        """Refuse a value that does not fit.

        Args:
            key: full name of the key in the yaml, such as ``train_loader.tau``.
            value: its value.

        Raises:
            ConfigError: one sentence that names the key and the fix.
        """
        if not self.fits(value):
            raise ConfigError(f"{key} is {shown(value)}: set it to {self.expected}")


def integer(least: int = 0, most: int = LARGEST) -> Kind:
    """A whole number.

    Args:
        least: the smallest value that is accepted.
        most: the largest value that is accepted.
    """
    return Kind(
        f"a whole number of {least} or more" + ("" if most == LARGEST else f", up to {most}"),
        lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= most,
    )


def number(least: float = 0.0, most: float = 1e9, *, above: bool = False) -> Kind:
    """A finite number of at least ``least``; with ``above``, greater than ``least``.

    Args:
        least: the smallest value that is accepted.
        most: the largest value that is accepted.
        above: whether ``least`` itself is refused.
    """
    return Kind(
        f"a number {f'above {least:g}, up' if above else f'from {least:g}'} to {most:g}",
        lambda v: is_number(v) and least <= v <= most and not (above and v == least),
    )


def one_of(*choices: Any) -> Kind:
    """One of a few values."""
    return Kind(
        f"one of {', '.join(map(str, choices))}",
        lambda v: any(type(v) is type(choice) and v == choice for choice in choices),
    )


def list_of(kind: Kind) -> Kind:
    """A list whose entries are all of one kind."""
    return Kind(
        f"a list, each entry {kind.expected}",
        lambda v: isinstance(v, (list, tuple)) and all(map(kind.fits, v)),
    )


_TIME = re.compile(r"(\d{1,12})(ep|ba|sp|tok)|(?:0?\.\d+|[01](?:\.0*)?)(dur)", re.IGNORECASE)


def time(*units: str, least: int = 0) -> Kind:
    """A time string of Composer, in some of ``ep``, ``ba``, ``sp``, ``tok`` and ``dur``.

    Args:
        units: allowed units; ``dur`` is at most 1.
        least: least value in the other units.
    """

    def fits(value: Any) -> bool:
        match = _TIME.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            return False
        unit = (match[2] or match[3]).lower()
        return unit in units and (unit == "dur" or int(match[1]) >= least)

    return Kind(f"a time such as {max(least, 1)}{units[0]}, in {' or '.join(units)}", fits)


NULL = Kind("null", lambda v: v is None)
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
TEXT = Kind("a text", lambda v: isinstance(v, str) and bool(v.strip()) and "\0" not in v)
MAPPING = Kind("options, written below it", lambda v: isinstance(v, Mapping))


def _is_path(value: Any) -> bool:
    try:
        return TEXT.fits(value) and len(value) < 1024 and bool(value.format(run_name="x"))
    except (LookupError, ValueError, AttributeError):
        return False


PATH = Kind("a path, in which {run_name} may stand for the name of the run", _is_path)


def nearest(name: Any, known: Iterable[str], otherwise: str = "remove it, or write") -> str:
    """The hint about an unknown name: the closest known name, or a list of them.

    Args:
        name: the unknown name, as the yaml has it.
        known: the known names.
        otherwise: first words of the hint if no known name is close.

    Returns:
        Words that end a sentence. A list of 40 names or more is cut to ten.
    """
    known = sorted(set(known))
    close = difflib.get_close_matches(str(name)[:80], known, n=1)
    listed = ", ".join(known) if len(known) < 40 else f"{', '.join(known[:10])}, ..."
    return f"did you mean {close[0]}?" if close else f"{otherwise} one of {listed}"


def refuse_unknown(section: str, given: Iterable[Any], known: Iterable[str]) -> None:
    """Refuse unknown keys.

    Args:
        section: key of the section, for the error.
        given: keys of the section.
        known: valid keys.

    Raises:
        ConfigError: a key is unknown; the message has the nearest valid key.
    """
    known = list(known)
    for key in given:
        if key not in known:
            hint = nearest(key, known) if known else "remove it"
            raise ConfigError(f"{section} has no key {shown(key)}: {hint}")
