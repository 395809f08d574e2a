"""Errors that end a run in one sentence, which names what is wrong, where, and the fix."""

from __future__ import annotations

from math import isfinite
from typing import Any


class ConfigError(ValueError):
    """A yaml that cannot be run."""


class DataError(ValueError):
    """Prepared data that is missing, half-written or of another kind than asked for."""


class NumericalFault(ArithmeticError):
    """Training came to values that are not finite, or are beyond what was configured."""


class WorkerLost(RuntimeError):
    """Another worker did not come to where all synchronise."""


class NotSaved(OSError):
    """A checkpoint could not be written; the one before it is as it was."""


def shown(value: Any) -> str:
    """A value in an error: on one line, and not long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def is_number(value: Any) -> bool:
    """Whether a value of a yaml is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
