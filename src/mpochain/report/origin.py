"""Where records came from, in lines to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["origin"]


def origin(provenances: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """One line for each thing that a result depends on, with every value it had.

    Example:
        >>> origin([{"threads": 1}, {"threads": 2}])[3]
        'threads: 1, 2'
    """
    lines = []
    for key in ("commit", "processor", "cpus", "threads", "python", "torch"):
        values = sorted({str(each.get(key)) for each in provenances})
        lines.append(f"{key}: {', '.join(_short(value) if key == 'commit' else value for value in values)}")
    return tuple(lines)


def _short(commit: str) -> str:
    head, plus, changes = commit.partition("+")
    return head[:12] + plus + changes
