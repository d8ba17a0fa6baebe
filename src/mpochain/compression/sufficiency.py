"""Whether calibration data are enough: rows per input of a layer, and errors on data that were set aside."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

__all__ = ["WANTED_ROWS_PER_INPUT", "HeldOut", "too_few_rows"]

# Rows per input feature below which a fit follows the sample; docs/decisions/0057 has the measurement.
WANTED_ROWS_PER_INPUT = 5


class _Counted(Protocol):
    """The part of a layer's record that is used here."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def rows(self) -> int | None: ...


@dataclass(frozen=True)
class HeldOut:
    """Difference between the outputs of the dense and the compressed model, on calibration data and on data set aside.

    Attributes:
        measure: what was measured, with its unit.
        calibration: difference on calibration data.
        held_out: difference on as many batches that were set aside.
        rows: rows (tokens) that were set aside, without masked ones.

    Example:
        >>> print(HeldOut("loss, nats", 0.1, 0.125, 2000))
        loss, nats: 0.1250 on 2,000 rows set aside, 0.1000 on calibration data
    """

    measure: str
    calibration: float
    held_out: float
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.measure}: {self.held_out:.4f} on {self.rows:,} rows set aside, {self.calibration:.4f} on "
            "calibration data"
        )


def too_few_rows(layers: Iterable[_Counted]) -> str | None:
    """Warning about the layer with the fewest calibration rows per input; None if all have enough.

    Example:
        >>> from types import SimpleNamespace as Record
        >>> too_few_rows([Record(name="up", shape=(8, 16), rows=400), Record(name="down", shape=(16, 8), rows=20)])
        'down has 20 calibration rows for 8 inputs (2.5 per input); give 40 or more (5 per input)...'
        >>> too_few_rows([Record(name="up", shape=(8, 16), rows=400)])
    """
    counted = [(layer.rows / layer.shape[1], layer.rows, layer) for layer in layers if layer.rows]
    few = [item for item in counted if item[0] < WANTED_ROWS_PER_INPUT]
    if not few:
        return None
    ratio, rows, layer = min(few, key=lambda item: item[0])
    inputs = layer.shape[1]
    others = f"; {len(few) - 1:,} other layers have too few as well" if len(few) > 1 else ""
    return (
        f"{layer.name} has {rows:,} calibration rows for {inputs:,} inputs ({math.floor(10 * ratio) / 10} per input); "
        f"give {inputs * WANTED_ROWS_PER_INPUT:,} or more ({WANTED_ROWS_PER_INPUT} per input){others}. With fewer, "
        "errors on other data are larger than reported"
    )
