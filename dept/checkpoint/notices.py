"""Sentences to whoever watches a run."""

from __future__ import annotations

import contextlib
import sys


def tell(sentence: str) -> None:
    """Print to stderr at once; a full disk that holds the log must not end what is told of."""
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)
