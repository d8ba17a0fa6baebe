"""Result of a training run, and the record of it that a checkpoint holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from mpochain.distributed import team_of_group
from mpochain.errors import CheckpointError

__all__ = ["CurvePoint", "TrainResult", "earlier_result", "record_of"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CurvePoint:
    """Evaluation during a training run.

    Attributes:
        step: number of steps done.
        train_loss: mean training loss since the previous point, in nats per token.
        metrics: metrics that the evaluation returned.
    """

    step: int
    train_loss: float
    metrics: dict[str, float]


@dataclass
class TrainResult:
    """Losses, evaluations, tokens and seconds of a training run, over all its sessions.

    Attributes:
        steps: number of steps done.
        seconds: time spent in training steps.
        tokens: tokens trained on.
        losses: training loss of every step, nats per token.
        curve: evaluations during the run.
    """

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Mean training speed, tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


_RESULT = TypeAdapter(TrainResult)


def record_of(setting: Mapping[str, Any], start: str, result: TrainResult, *, together: bool) -> dict[str, Any]:
    """The record of a run, JSON-ready.

    Args:
        setting: configuration and identity of the run.
        start: hash of the weights that it started from.
        result: result of this process so far.
        together: whether several processes train the model; all of them must call this.
    """
    first, *others = team_of_group(together=together).gathered(asdict(result))
    record = {"setting": dict(setting), "start": start, "versions": _versions(), "result": first}
    return record | ({"others": others} if others else {})


def _versions() -> dict[str, str]:
    versions = {"torch": str(torch.__version__)}
    with suppress(PackageNotFoundError):
        versions["mpochain"] = version("mpochain")
    return versions


def earlier_result(checkpoint: Path, record: dict[str, Any], setting: dict[str, Any], *, together: bool) -> TrainResult:
    """Return the result of earlier sessions from a checkpoint's record, after checking that its settings match.

    Args:
        checkpoint: the file, for messages.
        record: its record.
        setting: configuration and identity of the present run.
        together: whether several processes train the model, each of which gets its own result.

    Raises:
        CheckpointError: the record is damaged, or of a run with another setting.
    """
    stored = record.get("setting")
    if not isinstance(stored, dict) or not isinstance(record.get("start", 0), str | None):
        raise CheckpointError(f"{checkpoint}: the record of the run is damaged; remove the file to start again")
    for name in sorted({*stored, *setting}):
        if stored.get(name) != setting.get(name):
            raise CheckpointError(
                f"{checkpoint} belongs to a run with {name}={stored.get(name)!r}, not {setting.get(name)!r}; use that "
                "setting or another file, or remove this one to start again"
            )
    if record.get("versions") != _versions():
        logger.warning(
            "%s was begun with other versions, %s; it goes on with %s, and its last bits may differ from those of an "
            "uninterrupted run",
            checkpoint,
            record.get("versions") or "which it does not tell",
            _versions(),
        )
    try:
        results = [record["result"], *record.get("others", ())]
        result = _RESULT.validate_python(results[team_of_group(together=together).rank])
        if not (0 <= result.steps == len(result.losses) and result.tokens >= 0 and result.seconds >= 0):
            raise ValueError(f"{result.steps} steps with {len(result.losses)} losses, {result.tokens} tokens")
        return result
    except (LookupError, TypeError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"result.{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else f"result: {error}"
        raise CheckpointError(
            f"{checkpoint}: the record of the run is damaged ({reason}); remove the file to start again"
        ) from error
