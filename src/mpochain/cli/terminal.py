"""Width of the terminal."""

from __future__ import annotations

import os
import sys

__all__ = ["width"]

# Characters per line where the output is no terminal.
_PIPED = 100
_NARROWEST = 40


def width() -> int:
    """Characters per line of the output: those of the terminal, or 100 for a file or pipe; ``COLUMNS`` overrides.

    Example:
        >>> width() >= 40
        True
    """
    wanted = os.environ.get("COLUMNS", "")
    if wanted.isdecimal():
        return max(int(wanted), _NARROWEST)
    try:
        return max(os.get_terminal_size(sys.stdout.fileno()).columns, _NARROWEST)
    except (OSError, ValueError, AttributeError):
        return _PIPED
