"""Sizes and counts as text, in megabytes and millions."""

from __future__ import annotations

__all__ = ["megabytes", "millions"]


def megabytes(size: float) -> str:
    """A size in bytes as text in MB, with three digits or more.

    Example:
        >>> [megabytes(size) for size in (538_000_000, 98_362_432, 1_234_567, 4_096)]
        ['538 MB', '98.4 MB', '1.23 MB', '0.0041 MB']
    """
    return f"{_mega(size)} MB"


def millions(count: float) -> str:
    """A count as text in millions, with three digits or more.

    Example:
        >>> millions(134_515_008)
        '135 M'
    """
    return f"{_mega(count)} M"


def _mega(number: float) -> str:
    mega = number / 1e6
    if mega >= 99.95:
        return f"{mega:,.0f}"
    if mega >= 9.995:
        return f"{mega:.1f}"
    return f"{mega:.2f}" if mega >= 0.995 else f"{mega:.2g}"
