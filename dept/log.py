"""Messages to the user of a command: the logger ``dept``, which writes to stderr.

A message is one plain sentence, without time or level. If the root logger already writes to stderr
(a user's ``logging.basicConfig``, or ``python_log_level`` of a yaml), it shows these messages in
its own format, and they are not shown twice. Other handlers of the root logger, such as one that
writes a file, always receive them.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

log = logging.getLogger("dept")


class _Plain(logging.StreamHandler):
    """Writes to the current ``sys.stderr``, since progress bars and tests replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    def filter(self, record: logging.LogRecord) -> bool:
        handlers = logging.getLogger().handlers
        return not any(getattr(handler, "stream", None) is sys.stderr for handler in handlers)

    def handleError(self, record: logging.LogRecord) -> None:
        # If the disk of the output is full, the operation that logs must still continue.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


log.setLevel(logging.INFO)
log.addHandler(_Plain())
