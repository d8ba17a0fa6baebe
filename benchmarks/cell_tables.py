"""Full benchmark tables: every cell of a grid, grouped by shape."""

from __future__ import annotations

from collections.abc import Callable

import model_tables
import result_tables as tables
from ratios import Record
from targets import targets

_TABLES = (
    ("decomposition", "Decomposition of a random weight", tables.decomposition),
    ("planning", "Planning of new shapes", tables.planning),
    ("dispatch", "Dispatch: 128x128, χ=4, one row", tables.dispatch),
    ("memory", "Memory of a training step beyond inputs, outputs, parameters and gradients", tables.memory),
    ("lookup", "Look-up of rows of compressed tables, beside nn.Embedding", tables.lookup),
    ("models", "Whole models", model_tables.models),
)


def cell_tables(grid: str, groups: dict[str, list[Record]]) -> str:
    """Markdown with all targets and their missed cells, all cells, and the excluded peers."""
    checked = targets(groups)
    lines = [
        f"# Benchmarks: every cell of the {grid} grid",
        "",
        "Spread is the interquartile range of the compact chain over its median. The predicted plan is the cost "
        "model's. A cell whose bonds are clipped to those of a smaller χ is listed once.",
        "",
        "## Targets",
        "",
        tables.targets(checked),
        "",
    ]
    for target in checked:
        if target.missed:
            misses = "\n".join(f"- {cell}" for cell in target.missed)
            lines += _details(f"All misses ({len(target.missed)}): {target.text}", misses)
    if groups.get("forward"):
        lines += ["## Inference", "", *_by_shape(groups["forward"], tables.forward)]
    if groups.get("training"):
        lines += ["## Training step (forward and backward)", "", *_by_shape(groups["training"], tables.training)]
    for group, title, table in _TABLES:
        if groups.get(group):
            lines += [f"## {title}", "", table(groups[group]), ""]
    lines += ["## Left out", "", tables.left_out(groups), ""]
    return "\n".join(lines)


def _by_shape(cells: list[Record], table: Callable[[list[Record]], str]) -> list[str]:
    lines = []
    for name, group in tables.by_shape(cells):
        lines += _details(f"{name}, {len(group)} cells", table(group))
    return lines


def _details(title: str, body: str) -> list[str]:
    return ["<details>", f"<summary>{title}</summary>", "", body, "", "</details>", ""]
