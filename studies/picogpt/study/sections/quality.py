"""Page section on quality: the paper's table with correct counts, and the training losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpochain.report import Column
from mpochain.report.figures import Series, draw
from mpochain.report.page import Block, Figure, Table
from studies.picogpt.study.sections.accuracy import accuracy_series

__all__ = ["accuracy_figure", "quality"]

# Curves of all shapes and starts are drawn at this χ, or at the largest χ of a preset without it.
_COMPARED = 16

_COLUMNS = (
    Column("row", "model"),
    Column("parameters", "parameters", ","),
    Column("published_parameters", "published", ","),
    Column("compression", "smaller", ".2f"),
    Column("block_compression", "block smaller", ".2f"),
    Column("loss", "validation loss", ".3f"),
    Column("published_loss", "published", ".3f"),
    Column("perplexity", "perplexity", ".3f"),
    Column("accuracy", "accuracy", ".2%"),
    Column("spread", "± (seeds)"),
    Column("published_accuracy", "published", ".1%"),
    Column("kept", "of dense", ".1%"),
    Column("share", "size of paper's χ", ".2f"),
    Column("per_root", "accuracy/√N", ".2e"),
    Column("macs_per_token", "MACs per token", ","),
    Column("fewest_macs_per_token", "fewest MACs per token", ","),
)


def quality(name: str, rows: list[dict[str, Any]], records: list[dict[str, Any]], figures: Path) -> list[Block]:
    """Blocks on a preset's quality: the table, accuracy against size, and training losses of the first seed.

    One figure shows the losses of the paper's rows, another those of all rows of one size.

    Args:
        name: name of the preset.
        rows: rows of its table.
        records: records of its runs.
        figures: folder for the figures.
    """
    # Runs with a teacher have another loss function.
    losses = {
        record["setting"].row: record["training"]["losses"]
        for record in reversed(records)
        if record["training"] and not record["setting"].lessons
    }
    with_losses = [row for row in rows if losses.get(row["row"])]
    bonds = {row["bond"] for row in rows if row["bond"] is not None}
    bond = _COMPARED if _COMPARED in bonds else max(bonds, default=None)
    blocks: list[Block] = [
        Table(_COLUMNS, rows),
        *accuracy_figure(name, rows, figures),
        *_curves(
            figures / f"study-{name}-losses.png",
            {row["row"]: losses[row["row"]] for row in with_losses if row["of_paper"]},
            "Training loss from a random start, means of ten steps",
        ),
    ]
    if bond is not None:  # an interrupted study may have only dense runs
        blocks += _curves(
            figures / f"study-{name}-losses-{bond}.png",
            {row["row"]: losses[row["row"]] for row in with_losses if _is_drawn(row, bond)},
            f"Training loss at the size of χ={bond}, means of ten steps",
        )
    return blocks


def accuracy_figure(name: str, rows: list[dict[str, Any]], figures: Path) -> list[Block]:
    """The figure of accuracy against size; empty if no row can be drawn.

    Args:
        name: name of the preset.
        rows: rows of its table.
        figures: folder for the figure.
    """
    series = accuracy_series(rows, "parameters")
    if not series:
        return []
    file = figures / f"study-{name}-accuracy.png"
    draw(
        file,
        series,
        title="Validation accuracy against size (bars: all seeds)",
        x="parameters",
        y="token accuracy",
        axes={"xscale": "log"},
    )
    return [Figure(file, "Validation accuracy against parameters")]


def _is_drawn(row: dict[str, Any], bond: int) -> bool:
    """Whether the row has one of the paper's shapes or a random start; more curves would be indistinguishable."""
    return row["bond"] in (None, bond) and (row["design"].family == "paper" or row["start"] == "random")


def _curves(file: Path, losses: dict[str, list[float]], title: str) -> list[Block]:
    if max(map(len, losses.values()), default=0) < 2:
        return []  # a quick run has too few steps for a line
    series = [
        Series(row, [10 * (k + 1) for k in range(len(values))], values, markers=False) for row, values in losses.items()
    ]
    draw(file, series, title=title, x="step", y="nats per token")
    return [Figure(file, title.partition(",")[0])]
