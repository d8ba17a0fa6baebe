"""Log messages of the library as lines on stderr while a command runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["log_lines"]


class _Lines(logging.Handler):
    """Handler that prints plain messages; warnings and errors are prefixed with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        # sys.stderr is looked up each time, because a progress bar replaces it while it is shown.
        print(f"{level}{record.getMessage()}", file=sys.stderr, flush=True)


@contextmanager
def log_lines() -> Iterator[None]:
    """Show messages of the logger ``mpochain`` and its children at level INFO and above."""
    logger, handler = logging.getLogger("mpochain"), _Lines()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
