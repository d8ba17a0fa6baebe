"""The paper's table with true counts, and how the models learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpochain.picogpt.study.claims import PUBLISHED
from mpochain.picogpt.study.sections.accuracy import accuracy_series
from mpochain.report import Column
from mpochain.report.figures import Series, draw
from mpochain.report.page import Block, Figure, Table

__all__ = ["quality"]

# The χ whose curves are drawn beside those of other shapes and starts; the largest of a preset without it.
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
    Column("macs_per_token", "MACs/token", ","),
    Column("fewest_macs_per_token", "fewest MACs/token", ","),
)


def quality(name: str, rows: list[dict[str, Any]], records: list[dict[str, Any]], figures: Path) -> list[Block]:
    """The table of a preset, accuracy against size, and the curves of the first seed.

    Curves of the paper's rows, and of what has about the size of one of them.

    Args:
        name: of the preset.
        rows: of the table.
        records: its runs.
        figures: folder to draw in.
    """
    accuracy = figures / f"study-{name}-accuracy.png"
    draw(
        accuracy,
        accuracy_series(rows, "parameters"),
        title="Validation accuracy against size (bars: all seeds)",
        x="parameters",
        y="token accuracy",
        axes={"xscale": "log"},
    )
    # What learns from a teacher has another loss.
    trained = {
        record["setting"]["row"]: record["training"]
        for record in reversed(records)
        if record["training"] and not record["setting"]["lessons"]
    }
    losses = {row["row"]: values for row in rows if (values := trained.get(row["row"], {}).get("losses"))}
    bonds = {row["bond"] for row in rows if row["bond"]}
    bond = _COMPARED if _COMPARED in bonds else max(bonds, default=0)
    made: list[Block] = [
        Table(_COLUMNS, rows),
        Figure(accuracy, "Validation accuracy against parameters"),
        _curves(
            figures / f"study-{name}-losses.png",
            {row: values for row, values in losses.items() if row in PUBLISHED},
            "Training loss from a random start, means of ten steps",
        ),
    ]
    if bond:  # an interrupted study may have dense runs alone
        made.append(
            _curves(
                figures / f"study-{name}-losses-{bond}.png",
                {row["row"]: losses[row["row"]] for row in rows if row["row"] in losses and _is_drawn(row, bond)},
                f"Training loss at the size of χ={bond}, means of ten steps",
            )
        )
    return made


def _is_drawn(row: dict[str, Any], bond: int) -> bool:
    """As many curves as can be told apart: the paper's shapes from every start, others from a random one."""
    return row["bond"] in (0, bond) and (row["design"].family == "paper" or row["start"] == "random")


def _curves(file: Path, losses: dict[str, list[float]], title: str) -> Figure:
    series = [
        Series(row, [10 * (k + 1) for k in range(len(values))], values, markers=False) for row, values in losses.items()
    ]
    draw(file, series, title=title, x="step", y="nats per token")
    return Figure(file, title.partition(",")[0])
