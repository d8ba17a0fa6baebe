"""What the demo found, as values and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mpochain.report import Column, text

__all__ = ["COLUMNS", "DemoResult", "DemoRow"]

COLUMNS = (
    Column("name", "model"),
    Column("parameters", "parameters", ","),
    Column("compression", "smaller", ".1f"),
    Column("error", "weight error", ".3f"),
    Column("loss_before", "loss", ".3f"),
    Column("accuracy_before", "accuracy", ".1%"),
    Column("loss_after", "loss tuned", ".3f"),
    Column("accuracy_after", "accuracy tuned", ".1%"),
    Column("macs_per_token", "MACs/token", ","),
    Column("milliseconds_one", "ms one", ".1f"),
    Column("milliseconds_many", "ms batch", ".0f"),
)


@dataclass(frozen=True)
class DemoRow:
    """One model of the demo.

    Attributes:
        name: ``dense``; the bond; or the bond and "trained", for chains that were trained from a random start.
        parameters: of the whole model.
        compression: parameters of the dense model over these.
        error: relative Frobenius error of all its linears together; None for a model that was not decomposed.
        loss_before: validation loss as decomposed or trained, nats per token.
        accuracy_before: validation token accuracy as decomposed or trained.
        loss_after: the same after fine-tuning; None for a model that is not fine-tuned.
        accuracy_after: the same after fine-tuning; None for a model that is not fine-tuned.
        macs_per_token: multiply-adds of all linears per token, by the plan for a whole batch.
        milliseconds_one: median forward time of one sequence of 256 tokens.
        milliseconds_many: median forward time of a batch of such sequences.
        layer_errors: relative error of each linear.
        tuning_losses: training loss of each fine-tuning step.
    """

    name: str
    parameters: int
    compression: float
    error: float | None
    loss_before: float
    accuracy_before: float
    loss_after: float | None
    accuracy_after: float | None
    macs_per_token: int
    milliseconds_one: float
    milliseconds_many: float
    layer_errors: dict[str, float]
    tuning_losses: list[float]


@dataclass(frozen=True)
class DemoResult:
    """All rows, and where they came from.

    Attributes:
        corpus: which text, as a sentence.
        dense_model: where the dense model came from, as a sentence.
        setting: what the run was asked to do, and the hash of its text.
        rows: one per model, the dense one first.
        provenance: versions, machine, threads, commit.
        seconds: duration of the run.
    """

    corpus: str
    dense_model: str
    setting: dict[str, Any]
    rows: tuple[DemoRow, ...]
    provenance: dict[str, Any]
    seconds: float

    def table(self) -> str:
        """The table as text."""
        return text(COLUMNS, [asdict(row) for row in self.rows])
