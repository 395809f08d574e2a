"""Imports of large libraries in less time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Import within this block, without collections of garbage during it or of it after it.

    Importing llm-foundry makes more than a million objects that stay. Collections during it take a
    sixth of its time, and each later one that looks through all of them takes half a second.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
