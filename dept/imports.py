"""Imports of large libraries in less time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Do not collect garbage while this block imports, and let later collections skip its objects.

    Importing llm-foundry makes a great many objects, which stay: each collection would look through
    all of them (`make bench ROW=first-step` counts the seconds).
    """
    was_enabled, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
        if len(sys.modules) > before:  # otherwise it would keep the garbage of earlier calls
            gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
