"""Names that match a pattern: a name, or a regular expression after ``re:``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from mpochain.errors import ArgumentError

__all__ = ["matching"]


def matching(names: Iterable[str], pattern: str, argument: str, what: str) -> list[str]:
    """The names that a pattern matches in full.

    Args:
        names: names; empty ones are left out.
        pattern: a name, or ``re:`` and a regular expression.
        argument: the argument that gives the pattern, for errors.
        what: what the names are of, for errors.

    Raises:
        ArgumentError: the regular expression is invalid, or nothing matches; the message gives similar names.

    Example:
        >>> matching(["0.up", "0.down", "1.up"], "re:.*up", "targets", "layer")
        ['0.up', '1.up']
    """
    offered = [name for name in names if name]
    try:
        matches = re.compile(pattern.removeprefix("re:")).fullmatch if pattern.startswith("re:") else pattern.__eq__
    except re.error as error:
        raise ArgumentError(f"{argument}: {pattern!r} is not a regular expression: {error}") from error
    matched = [name for name in offered if matches(name)]
    if not matched:
        similar = ", ".join(get_close_matches(pattern.removeprefix("re:"), offered, cutoff=0.3)) or "none"
        raise ArgumentError(f"{argument}: {pattern!r} matches no {what}; similar names: {similar}")
    return matched
