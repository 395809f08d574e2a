"""Errors that end a run in one sentence, which names what is wrong, where, and the fix."""

from __future__ import annotations

from math import isfinite
from typing import Any


class ConfigError(ValueError):
    """A yaml that cannot be run."""


class DataError(ValueError):
    """Prepared data that is missing, half-written or of another kind than asked for."""


class NumericalFault(ArithmeticError):
    """Training reached values that are not finite, or that exceed a configured limit."""


class WorkerLost(RuntimeError):
    """Another worker did not reach a point where all workers synchronise."""


class NotSaved(OSError):
    """A checkpoint could not be written; the previous one is unchanged."""


def shown(value: Any) -> str:
    """Format a value for an error message: on one line, with at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def is_number(value: Any) -> bool:
    """Whether a value of a yaml is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
