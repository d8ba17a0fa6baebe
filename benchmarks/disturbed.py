"""Removal of cells that other load on the machine disturbed: ``python benchmarks/disturbed.py [grid]``.

The dense layer's time does not depend on the chain measured with it, so a cell whose dense time is far above that of
other cells of the same shape was measured on a busy machine. Only the dense time decides, whether or not the chain
gained from the disturbance. The next run measures the removed cells again.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

# On a quiet machine, dense times of one shape vary by about 10 % between cells.
_FAR_ABOVE = 1.5


def disturbed(records: Iterable[dict[str, Any]]) -> list[str]:
    """Names of cells whose dense time is far above the median for their shape, batch and dtype."""
    groups = defaultdict(list)
    for record in records:
        sizes = tuple(math.prod(record["spec"][dims]) for dims in ("out_dims", "in_dims"))
        groups[sizes, record["batch"], record["dtype"]].append((record["timings"]["dense"]["median"], record["cell"]))
    names = []
    for cells in groups.values():
        usual = statistics.median(seconds for seconds, _ in cells)
        names += [name for seconds, name in cells if seconds > _FAR_ABOVE * usual]
    return names


def main(grid: str) -> None:
    os.environ["MPOCHAIN_BENCH_GRID"] = grid
    import results

    for group in ("forward", "training"):
        records = results.load(group)
        names = disturbed(records.values())
        if names:
            results.rewrite(group, [record for name, record in records.items() if name not in names])
        print(json.dumps({"group": group, "cells": len(records), "disturbed": names}, ensure_ascii=False))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "small")
