"""How often the text of each source was read: a short source is read again, in a new order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dept.corpus import read_corpus
from dept.options import MixtureOptions


def passes(tokens: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Passes over each source.

    Args:
        tokens: that were trained on, by source.
        sizes: tokens of its training split.
    """
    return {name: tokens[name] / sizes[name] for name in tokens}


def of_mixture(options: MixtureOptions, tokens: int) -> dict[str, float]:
    """Passes over the sources of a mixture, of which ``tokens`` were read in all."""
    corpus = read_corpus(Path(options.root), options.corpus)
    names = corpus.sources if options.sources is None else options.sources
    sizes = {name: corpus.source(name).splits["train"].tokens for name in names}
    weights = {name: size ** float(options.tau) for name, size in sizes.items()}
    total = sum(weights.values())
    return passes({name: tokens * weight / total for name, weight in weights.items()}, sizes)


def line(sources: Mapping[str, Mapping[str, Any]]) -> str | None:
    """One line about the sources of a ``summary.json`` that were read more than once, if any."""
    often = {n: e["passes"] for n, e in sources.items() if e.get("passes", 0) > 1}
    if not often:
        return None
    said = ", ".join(f"{n} {v:.1f}" for n, v in sorted(often.items(), key=lambda item: -item[1]))
    return f"Read more than once, each time in a new order: {said} times."
