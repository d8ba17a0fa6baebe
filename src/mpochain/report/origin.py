"""Summary of the provenance of several records, as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["commit_name", "origin"]


def origin(provenances: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """One line per recorded fact that a result depends on, with all its distinct values.

    Example:
        >>> origin([{"threads": 1, "torch": "2.9.0"}, {"threads": 2, "torch": "2.9.0"}])
        ('threads: 1, 2', 'torch: 2.9.0')
    """
    lines = []
    for key in ("commit", "processor", "cpus", "threads", "python", "torch"):
        if any(key in record for record in provenances):
            values = sorted({_value(record, key) for record in provenances})
            lines.append(f"{key}: {', '.join(values)}")
    return tuple(lines)


def commit_name(provenance: Mapping[str, Any]) -> str:
    """The commit a result came from, its hash cut to twelve digits.

    Example:
        >>> commit_name({"commit": "0123456789abcdef+changes"}), commit_name({"commit": None}), commit_name({})
        ('0123456789ab+changes', 'unknown, not run from a clone', 'not recorded')
    """
    if "commit" not in provenance:
        return "not recorded"
    commit = provenance["commit"]
    if commit is None:
        return "unknown, not run from a clone"
    head, plus, changes = commit.partition("+")
    return f"{head[:12]}{plus}{changes}"


def _value(provenance: Mapping[str, Any], key: str) -> str:
    if key == "commit":
        return commit_name(provenance)
    return str(provenance[key]) if key in provenance else "not recorded"
