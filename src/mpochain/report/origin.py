"""Where records came from, in lines to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["commit_name", "origin"]


def origin(provenances: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """One line for each thing that a result depends on, with every value it had.

    Example:
        >>> origin([{"threads": 1}, {"threads": 2}])[3]
        'threads: 1, 2'
    """
    lines = []
    for key in ("commit", "processor", "cpus", "threads", "python", "torch"):
        values = sorted({commit_name(each) if key == "commit" else str(each.get(key)) for each in provenances})
        lines.append(f"{key}: {', '.join(values)}")
    return tuple(lines)


def commit_name(provenance: Mapping[str, Any]) -> str:
    """The commit a result came from, in twelve digits.

    Example:
        >>> commit_name({"commit": "0123456789abcdef+changes"}), commit_name({"commit": None})
        ('0123456789ab+changes', 'unknown, not run from a clone')
    """
    commit = provenance.get("commit")
    if commit is None:
        return "unknown, not run from a clone"
    head, plus, changes = commit.partition("+")
    return f"{head[:12]}{plus}{changes}"
