"""Log messages of the library as lines, on stderr or where a program shows them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mpochain.errors import printable

__all__ = ["log_lines"]


def _to_stderr(line: str) -> None:
    # sys.stderr is looked up each time, because a progress bar replaces it while it is shown.
    print(line, file=sys.stderr, flush=True)


class _Lines(logging.Handler):
    """Handler that shows plain messages; warnings and errors are prefixed with their level."""

    def __init__(self, show: Callable[[str], object]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        self._show(printable(f"{level}{record.getMessage()}"))


@contextmanager
def log_lines(show: Callable[[str], object] = _to_stderr) -> Iterator[None]:
    """Show messages of the logger ``mpochain`` and its children at level INFO and above.

    Args:
        show: called with each line; by default the line is printed to stderr.
    """
    logger, handler = logging.getLogger("mpochain"), _Lines(show)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
