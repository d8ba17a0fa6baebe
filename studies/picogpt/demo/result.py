"""Results of the demo, as values and as a table."""

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
    Column("loss_after", "loss finetuned", ".3f"),
    Column("accuracy_after", "accuracy finetuned", ".1%"),
    Column("macs_per_token", "MACs/token", ","),
    Column("milliseconds_one", "ms one", ".1f"),
    Column("milliseconds_many", "ms batch", ".0f"),
)


@dataclass(frozen=True)
class DemoRow:
    """Cost and quality of one model in the demo.

    Attributes:
        name: ``dense``; the bond; or the bond and "trained", for chains that were trained from a random start.
        parameters: parameters of the whole model.
        compression: ratio of the dense model's parameters to these.
        error: relative Frobenius error over all linear layers together; None for a model that was not decomposed.
        loss_before: validation loss before finetuning, nats per token.
        accuracy_before: validation token accuracy before finetuning.
        loss_after: validation loss after finetuning; None for a model that is not finetuned.
        accuracy_after: validation token accuracy after finetuning; None for a model that is not finetuned.
        macs_per_token: multiply-adds of all linear layers per token, in the plan for a full batch.
        milliseconds_one: median forward time of one sequence of 256 tokens.
        milliseconds_many: median forward time of a batch of such sequences.
        layer_errors: relative error of each linear layer.
        finetune_losses: training loss of each finetuning step.
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
    finetune_losses: list[float]


@dataclass(frozen=True)
class DemoResult:
    """Results of the demo with their provenance.

    Attributes:
        corpus: description of the text.
        dense_model: description of the dense model's origin.
        setting: arguments of the run, and the hash of its text.
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
        """Results as a plain text table."""
        return text(COLUMNS, [asdict(row) for row in self.rows])
