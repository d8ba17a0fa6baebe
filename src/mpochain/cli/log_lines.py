"""Log of the library as lines on stderr, for the time of a command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["log_lines"]


class _Lines(logging.Handler):
    """Messages as they are, warnings and errors after the name of their level."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        # Looked up each time: a progress bar takes the place of stderr while it is shown.
        print(f"{level}{record.getMessage()}", file=sys.stderr, flush=True)


@contextmanager
def log_lines() -> Iterator[None]:
    """Show what the logger ``mpochain`` and its children say, from INFO on."""
    logger, handler = logging.getLogger("mpochain"), _Lines()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
