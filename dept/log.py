"""Messages to whoever watches a command: ``logging`` under the name ``dept``, shown on stderr.

A message is one plain sentence, without time or level. Where the root logger shows its records on
stderr itself (a user's ``logging.basicConfig``, or ``python_log_level`` of a yaml), it shows these
as well, in its own format, and they are not shown twice. Other handlers of the root logger, such as
one that writes a file, get them in any case.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

log = logging.getLogger("dept")


class _Plain(logging.StreamHandler):
    """Writes to what ``sys.stderr`` is at the time: progress bars and tests exchange it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    def filter(self, record: logging.LogRecord) -> bool:
        handlers = logging.getLogger().handlers
        return not any(getattr(handler, "stream", None) is sys.stderr for handler in handlers)

    def handleError(self, record: logging.LogRecord) -> None:
        # A full disk that holds the output must not end what the message is about.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


log.setLevel(logging.INFO)
log.addHandler(_Plain())
