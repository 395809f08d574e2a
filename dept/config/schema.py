"""Checks of yamls: what a value may be, said once, and the sentence if it is something else."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dept.errors import ConfigError, is_number, shown

LARGEST = 2**31 - 1
"""Of counts and seeds: what numpy and torch take everywhere."""


@dataclass(frozen=True)
class Value:
    """A value by itself.

    Attributes:
        expected: what it may be, to go behind "set it to".
        fits: whether a value is that.
    """

    expected: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Section:
    """A mapping of keys.

    Attributes:
        keys: what the value of each may be.
        required: keys that must be there.
        is_open: whether other keys may be there, too, of any value.
    """

    keys: Mapping[str, Spec] = field(default_factory=dict)
    required: Sequence[str] = ()
    is_open: bool = False


@dataclass(frozen=True)
class Named:
    """A mapping whose ``name`` says which keys it has beside that."""

    of: Mapping[str, Section]


@dataclass(frozen=True)
class ListOf:
    """A list of what fits ``each``."""

    each: Spec
    least: int = 0


@dataclass(frozen=True)
class Optional:
    """What fits ``spec``, or null."""

    spec: Spec


Spec = Value | Section | Named | ListOf | Optional


def check(where: str, spec: Spec, value: Any) -> None:
    """Refuse a value that does not fit.

    Args:
        where: its key, with those above it.
        spec: what it may be.
        value: of a resolved yaml.

    Raises:
        ConfigError: one sentence that names the key and the mend.
    """
    if isinstance(spec, Optional):
        if value is not None:
            check(where, spec.spec, value)
    elif isinstance(spec, Value):
        if not spec.fits(value):
            raise ConfigError(f"{where} is {shown(value)}: set it to {spec.expected}")
    elif isinstance(spec, ListOf):
        if not isinstance(value, (list, tuple)) or len(value) < spec.least:
            least = f" of {spec.least} or more" if spec.least else ""
            raise ConfigError(f"{where} is {shown(value)}: set it to a list{least}")
        for index, each in enumerate(value):
            check(f"{where}[{index}]", spec.each, each)
    elif not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {shown(value)}: write its options below it")
    elif isinstance(spec, Named):
        name = value.get("name")
        if not isinstance(name, str) or name not in spec.of:
            raise ConfigError(f"{where}.name is {shown(name)}: {_hint(name, spec.of)}")
        rest = {key: given for key, given in value.items() if key != "name"}
        check(where, spec.of[name], rest)
    else:
        _check_section(where, spec, value)


def _check_section(where: str, spec: Section, value: Mapping[str, Any]) -> None:
    for key in value:
        if key not in spec.keys and not spec.is_open:
            raise ConfigError(
                f"{where or 'the yaml'} has no key {shown(key)}: {_hint(key, spec.keys)}"
            )
    for key in spec.required:
        if key not in value:
            raise ConfigError(f"{where or 'the yaml'} lacks {key}: add it")
    for key, given in value.items():
        if key in spec.keys:
            check(f"{where}.{key}" if where else key, spec.keys[key], given)


def _hint(key: Any, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(str(key)[:80], known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"remove it, or write one of {', '.join(known)}" if len(known) < 40 else "remove it"


def integer(least: int = 0, most: int = LARGEST) -> Value:
    """A whole number."""
    return Value(
        f"a whole number of {least} or more" + ("" if most == LARGEST else f", up to {most}"),
        lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= most,
    )


def number(least: float = 0.0, most: float = 1e9, *, above: bool = False) -> Value:
    """A finite number; ``above``: more than ``least``."""
    return Value(
        f"a number {f'above {least:g}, up' if above else f'from {least:g}'} to {most:g}",
        lambda v: is_number(v) and least <= v <= most and not (above and v == least),
    )


def one_of(*choices: Any) -> Value:
    """One of a few values."""
    return Value(
        f"one of {', '.join(map(str, choices))}",
        lambda v: any(type(v) is type(choice) and v == choice for choice in choices),
    )


def either(*values: Value) -> Value:
    """What fits any of several."""
    return Value(
        ", or ".join(value.expected for value in values),
        lambda v: any(value.fits(v) for value in values),
    )


_TIME = re.compile(r"(\d{1,12})(ep|ba|sp|tok)|(\d{1,12}(?:\.\d*)?|\.\d+)dur", re.IGNORECASE)


def time(*units: str, least: int = 0, most: float = 1.0) -> Value:
    """A time string of Composer.

    Args:
        units: among ``ep``, ``ba``, ``sp``, ``tok``, ``dur``.
        least: the least it may be, of whatever unit.
        most: the most it may be in ``dur``.
    """

    def fits(value: Any) -> bool:
        match = _TIME.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            return False
        if match[3] is not None:
            return "dur" in units and float(match[3]) <= most
        return match[2].lower() in units and int(match[1]) >= least

    example = "0.1dur" if units == ("dur",) else f"{max(least, 1)}{units[0]}"
    return Value(f"a time such as {example}, in {' or '.join(units)}", fits)


ANYTHING = Value("anything", lambda v: True)
FLAG = Value("true or false", lambda v: isinstance(v, bool))
TEXT = Value("a text", lambda v: isinstance(v, str) and bool(v.strip()) and "\0" not in v)
NAME = either(TEXT, integer())
FRACTION = number(0, 1)
MAPPING = Section(is_open=True)


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return True


PATTERN = Value("a regular expression", lambda v: isinstance(v, str) and _is_pattern(v))


def _is_path(value: Any) -> bool:
    try:
        return TEXT.fits(value) and len(value) < 1024 and bool(value.format(run_name="x"))
    except (KeyError, IndexError, ValueError, AttributeError):
        return False


PATH = Value("a path, in which {run_name} may stand for the name of the run", _is_path)
