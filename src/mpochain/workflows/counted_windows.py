"""Calibration windows that report the progress of each pass over them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from mpochain.system.progress import Counters

__all__ = ["CountedWindows"]


class CountedWindows:
    """Calibration windows that report the progress of each pass over them."""

    shows_progress = True

    def __init__(self, windows: list[Tensor], counters: Counters) -> None:
        self._windows, self._counters = windows, counters
        self._passes = 0

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Tensor:
        return self._windows[index]

    @property
    def uncounted(self) -> list[Tensor]:
        """The windows themselves, to read without a pass that is reported."""
        return self._windows

    def __iter__(self) -> Iterator[Tensor]:
        self._passes += 1
        count = self._counters(f"calibration, pass {self._passes}")
        for number, window in enumerate(self._windows, 1):
            yield window
            count(number, len(self._windows))
