"""How often the text of each source was read: a short source is read again, in a new order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def passes(tokens: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Passes over the training split of each source; not of one that has left the run.

    Args:
        tokens: tokens (or sequences) trained on, by source.
        sizes: tokens (or sequences) of its training split, by source.
    """
    return {name: tokens[name] / sizes[name] for name in tokens if name in sizes}


def line(sources: Mapping[str, Mapping[str, Any]]) -> str | None:
    """One line about the sources of a ``summary.json`` that were read more than once, if any."""
    often = {n: e["passes"] for n, e in sources.items() if e.get("passes", 0) > 1}
    if not often:
        return None
    said = ", ".join(f"{n} {v:.1f}" for n, v in sorted(often.items(), key=lambda item: -item[1]))
    return f"Read more than once, each time in a new order: {said} times."
