"""Reading ahead: a thread prepares the next items while one is in use."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Empty, Full, Queue
from typing import Any, TypeVar

T = TypeVar("T")

POLL = 0.1  # seconds between two checks whether the reader still exists


def ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """Yield the same items, of which up to ``depth`` are prepared in advance.

    Args:
        items: one thread reads them; it ends after the last item, or when the reader is gone.
        depth: greatest number of waiting items.

    Raises:
        Exception: an error of ``items``, in the place of the item.
    """
    ready: Queue[tuple[T | None, BaseException | None]] = Queue(depth)
    is_over = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not is_over.is_set():
            try:
                return ready.put((item, error), timeout=POLL)
            except Full:
                continue

    def read() -> None:
        try:
            for item in items:
                put(item, None)
                if is_over.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=read, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = _next(ready, thread)
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        is_over.set()
        thread.join()


def _next(ready: Queue, thread: threading.Thread) -> Any:
    while True:
        try:
            return ready.get(timeout=POLL)
        except Empty:
            if not thread.is_alive() and ready.empty():
                raise RuntimeError("the thread that reads ahead has died") from None
