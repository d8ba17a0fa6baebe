"""Calibration batches that are set aside from the fit, to judge it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["Part", "sets_aside"]

# One of so many batches is set aside; of fewer batches in all than the second number, none.
_ONE_OF, _LEAST_BATCHES = 4, 8


def sets_aside(batches: int) -> bool:
    """Whether some of so many calibration batches are set aside from the fit.

    Example:
        >>> sets_aside(7), sets_aside(8)
        (False, True)
    """
    return batches >= _LEAST_BATCHES


class Part:
    """The batches that are set aside, or the others."""

    def __init__(self, batches: Iterable[Any], *, aside: bool) -> None:
        self._batches, self._aside = batches, aside

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._batches, 1):
            if (number % _ONE_OF == 0) == self._aside:
                yield batch
