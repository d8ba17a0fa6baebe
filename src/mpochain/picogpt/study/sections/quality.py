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
    Column("step_peak", "MiB step", ",.0f"),
)


def quality(name: str, rows: list[dict[str, Any]], records: list[dict[str, Any]], figures: Path) -> list[Block]:
    """The table of a preset, accuracy against size, and the curves of the first seed of the paper's rows.

    Args:
        name: of the preset.
        rows: of the table.
        records: its runs.
        figures: folder to draw in.
    """
    accuracy, losses = (figures / f"study-{name}-{key}.png" for key in ("accuracy", "losses"))
    draw(
        accuracy,
        accuracy_series(rows, "parameters"),
        title="Validation accuracy against size",
        x="parameters",
        y="token accuracy",
        axes={"xscale": "log"},
    )
    first = {record["setting"]["row"]: record for record in reversed(records) if record["training"]}
    shown = [row["row"] for row in rows if row["row"] in first and row["row"] in PUBLISHED]
    draw(
        losses,
        [
            Series(row, [10 * (k + 1) for k in range(len(values))], values, markers=False)
            for row in shown
            if (values := first[row]["training"]["losses"])
        ],
        title="Training loss from a random start, means of ten steps",
        x="step",
        y="nats per token",
    )
    return [
        Table(_COLUMNS, rows),
        Figure(accuracy, "Validation accuracy against parameters"),
        Figure(losses, "Training loss"),
    ]
