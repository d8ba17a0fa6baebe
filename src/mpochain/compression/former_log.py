"""Deprecated argument ``log`` of compress, a function that is called with each log message."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator

__all__ = ["logged_to"]


class _Calling(logging.Handler):
    """Handler that calls a function with each message."""

    def __init__(self, function: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._function = function

    def emit(self, record: logging.LogRecord) -> None:
        self._function(record.getMessage())


@contextlib.contextmanager
def logged_to(function: Callable[[str], None] | None) -> Iterator[None]:
    """Pass the library's log messages to a function, for the deprecated argument ``log``."""
    if function is None:
        yield
        return
    warnings.warn(
        "compress(log=) is deprecated and removed in the next release; read the messages of "
        'logging.getLogger("mpochain") at level INFO instead',
        DeprecationWarning,
        stacklevel=4,
    )
    library = logging.getLogger("mpochain")
    handler, level = _Calling(function), library.level
    library.addHandler(handler)
    if not library.isEnabledFor(logging.INFO):
        library.setLevel(logging.INFO)
    try:
        yield
    finally:
        library.removeHandler(handler)
        library.setLevel(level)
