"""The training loop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from mpochain.atomic import require_writable
from mpochain.errors import CheckpointError, SpecError
from mpochain.train.config import TrainConfig, learning_rate
from mpochain.train.progress import TrainingProgress
from mpochain.train.state import load_state, read_record, save_state

__all__ = ["CurvePoint", "TrainResult", "train"]

Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class CurvePoint:
    """One point of a run's history.

    Attributes:
        step: steps done.
        train_loss: mean training loss of the steps since the last point, nats per token.
        metrics: what the evaluation returned.
    """

    step: int
    train_loss: float
    metrics: dict[str, float]


@dataclass
class TrainResult:
    """What a run did.

    Attributes:
        steps: steps done, in all sessions.
        seconds: time spent in training steps, in all sessions.
        tokens: tokens seen, in all sessions.
        losses: training loss of every step, nats per token.
        curve: its evaluations.
    """

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Mean training speed."""
        return self.tokens / self.seconds if self.seconds else 0.0


_RESULT = TypeAdapter(TrainResult)


@contextmanager
def _interrupt_between_steps() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag, so that no optimiser step is cut in half; a second Ctrl-C stops at once."""
    flagged = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flagged.is_set
        return

    def remember(number: int, frame: FrameType | None) -> None:
        if flagged.is_set():
            signal.default_int_handler(number, frame)
        flagged.set()

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield flagged.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def train(
    model: nn.Module,
    sample: Callable[[torch.Generator], Batch],
    loss: Loss,
    config: TrainConfig,
    *,
    scales: Mapping[str, float] | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    label: str = "training",
) -> TrainResult:
    """Train ``model`` in place.

    Args:
        model: trained on the device it is on.
        sample: draws a batch ``(inputs, targets)`` from a generator; the only source of randomness of the loop.
        loss: mean loss per token of a batch, differentiable.
        config: see :class:`TrainConfig`.
        scales: factors of the learning rate by parameter name, 1 for those that are not named.
        evaluate: called every ``config.evaluate_every`` steps and at the end; its time is not counted as training.
        checkpoint: file to keep the state in; if it exists the run goes on from there, to the bit.
        identity: what else makes this run this run, such as the hash of its data (JSON); a checkpoint of another one
            is refused.
        label: shown with the progress.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another model, configuration or identity.
        SpecError: a scale for a parameter that the model has not.
        OutputError: the checkpoint's folder cannot be written, found before the first step.
        KeyboardInterrupt: after Ctrl-C, once the running step is done and the checkpoint written.
    """
    optimizer = torch.optim.AdamW(
        _groups(model, scales or {}),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )
    generator = torch.Generator().manual_seed(config.seed)
    result = TrainResult()
    setting = {**config.model_dump(mode="json"), **(identity or {})}
    if scales is not None:
        setting["scales"] = dict(sorted(scales.items()))
    if checkpoint is not None:
        require_writable(checkpoint.parent)
        if checkpoint.exists():
            result = _restore(checkpoint, read_record(checkpoint), setting)
            load_state(checkpoint, model, optimizer, generator)

    def keep() -> None:
        if checkpoint is not None:
            record = {"setting": setting, "result": asdict(result)}
            save_state(checkpoint, model, optimizer, generator, record)

    def note() -> None:
        metrics = evaluate() if evaluate is not None else {}
        model.train()
        since = result.losses[result.curve[-1].step if result.curve else 0 :]
        result.curve.append(CurvePoint(result.steps, sum(since) / len(since), metrics))

    model.train()
    tokens = config.batch_size  # replaced by the true count as soon as a batch is seen
    progress: TrainingProgress | None = None
    with _interrupt_between_steps() as interrupted:
        try:
            while result.steps < config.steps:
                began = time.perf_counter()
                inputs, targets = sample(generator)
                if progress is None:
                    tokens = targets.numel()
                    progress = TrainingProgress(label, config.steps, start=result.steps, tokens_per_step=tokens)
                    progress.__enter__()
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, result.steps) * group["scale"]
                value = loss(model, (inputs, targets))
                value.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                result.losses.append(value.item())
                result.steps += 1
                result.tokens += tokens
                result.seconds += time.perf_counter() - began
                progress.update(result.steps, result.losses[-1])
                last = result.steps == config.steps
                if last or (config.evaluate_every and result.steps % config.evaluate_every == 0):
                    note()
                if last or interrupted() or result.steps % config.checkpoint_every == 0:
                    keep()
                if interrupted():
                    raise KeyboardInterrupt
        finally:
            if progress is not None:
                progress.__exit__(None, None, None)
    return result


def _groups(model: nn.Module, scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """The trainable parameters, one group for each factor of the learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    unknown = dict(scales)
    for name, parameter in model.named_parameters():
        scale = unknown.pop(name, 1.0)
        if parameter.requires_grad:
            groups.setdefault(scale, []).append(parameter)
    if unknown:
        raise SpecError(f"the model has no parameters {sorted(unknown)[:3]}; scales go by the names of the model")
    return [{"params": parameters, "scale": scale} for scale, parameters in groups.items()]


def _restore(checkpoint: Path, record: dict[str, Any], setting: dict[str, Any]) -> TrainResult:
    """The result so far of a run with this setting, from its record."""
    stored = record.get("setting")
    if not isinstance(stored, dict):
        raise CheckpointError(f"{checkpoint}: the record of the run is damaged; remove the file to start anew")
    for name in sorted({*stored, *setting}):
        if stored.get(name) != setting.get(name):
            raise CheckpointError(
                f"{checkpoint} is of a run with {name}={stored.get(name)!r}, not {setting.get(name)!r}; use its "
                "setting, another file, or remove it to start anew"
            )
    try:
        return _RESULT.validate_python(record["result"])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{checkpoint}: the record of the run is damaged ({error}); remove it") from error
