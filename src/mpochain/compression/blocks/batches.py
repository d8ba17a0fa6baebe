"""Calibration batches divided into those to fit to and those that decide what is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

from mpochain.compression.statistics.moments import copied
from mpochain.errors import ArgumentError
from mpochain.wording import counted

__all__ = ["divided", "listed"]

# Without held-out batches, one of so many calibration batches is held out.
_ONE_OF = 8


def divided(calibration: Iterable[Any], held_out: Iterable[Any] | None, option: str) -> tuple[list[Any], list[Any]]:
    """Batches to fit to, and held-out batches.

    Args:
        calibration: calibration batches.
        held_out: batches that were set aside; None or none to hold out one of eight calibration batches.
        option: option of :func:`mpochain.compress` that needs them, for messages.

    Raises:
        ArgumentError: there are too few.

    Example:
        >>> divided([1, 2, 3], None, "refine=True"), divided([1], [2], "refine=True")
        (([1, 2], [3]), ([1], [2]))
    """
    fitted = listed(calibration)
    aside = [] if held_out is None else listed(held_out)
    if not aside:
        if len(fitted) < _ONE_OF:
            fitted, aside = fitted[:-1], fitted[-1:]
        else:
            aside = fitted[_ONE_OF - 1 :: _ONE_OF]
            fitted = [batch for number, batch in enumerate(fitted, 1) if number % _ONE_OF]
    if not fitted or not aside:
        count = counted(len(fitted) + len(aside), "batch", "batches")
        raise ArgumentError(
            f"{option} needs batches to fit to and others to hold out, got {count}; divide calibration= into two "
            "batches or more, or give held_out="
        )
    return fitted, aside


def listed(batches: Iterable[Any]) -> list[Any]:
    """All batches; those of a list or the like without a pass that would show progress."""
    if isinstance(batches, Sized) and hasattr(batches, "__getitem__"):
        return [batches[number] for number in range(len(batches))]
    return [copied(batch) for batch in batches]  # which may be one object with other numbers each time
