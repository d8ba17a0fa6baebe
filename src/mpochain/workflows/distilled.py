"""A model compressed in stages, with the results of each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpochain.language import LanguageModel
from mpochain.train import TrainResult

__all__ = ["Distilled", "training_record"]


@dataclass(frozen=True)
class Distilled:
    """Model compressed in stages, with the results of each stage.

    Attributes:
        language: compressed model.
        parameters: number of the model's parameters before and after.
        dense: perplexity of the dense model, ready for JSON; None without an evaluation.
        stages: results of each stage, ready for JSON.
        provenance: versions, machine, threads, commit.
    """

    language: LanguageModel
    parameters: tuple[int, int]
    dense: dict[str, Any] | None
    stages: tuple[dict[str, Any], ...]
    provenance: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the model, as a dictionary for JSON."""
        return {
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "dense": self.dense,
            "stages": list(self.stages),
            "provenance": self.provenance,
        }


def training_record(result: TrainResult) -> dict[str, Any]:
    """The result of the training of a stage, ready for JSON."""
    return {
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "losses": [round(loss, 5) for loss in result.losses],
    }
