"""The training loop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from mpochain.errors import CheckpointError, NonFiniteError
from mpochain.execution import fast_products
from mpochain.system.files import require_writable
from mpochain.system.progress import TrainingProgress
from mpochain.train.config import TrainConfig, learning_rate
from mpochain.train.groups import scaled_groups
from mpochain.train.state import load_state, read_record, save_state

__all__ = ["CurvePoint", "TrainResult", "train"]

Batch = TypeVar("Batch")


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


@contextmanager
def _seeded(model: nn.Module, seed: int, step: int) -> Iterator[None]:
    """Dropout drawn from seed and step alone: a resumed run draws what the whole one does. Put back afterwards."""
    devices = sorted({each.device.index or 0 for each in model.parameters() if each.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed((seed * 1_000_003 + step) % (1 << 63))
        yield


def _whole(batch: Batch) -> Iterable[tuple[Batch, float]]:
    return [(batch, 1.0)]


def _targets(batch: Any) -> int:
    return int(batch[1].numel())


def train(
    model: nn.Module,
    sample: Callable[[torch.Generator, int], Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    config: TrainConfig,
    *,
    parts: Callable[[Batch], Iterable[tuple[Batch, float]]] = _whole,
    tokens: Callable[[Batch], int] = _targets,
    scales: Mapping[str, float] | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    label: str = "training",
) -> TrainResult:
    """Train ``model`` in place, with the float32 products that are fastest here.

    Args:
        model: trained on the device it is on.
        sample: draws a batch from a generator, for the step of this number (0-based). What layers draw, such as
            dropout, depends on the seed and the step, and leaves torch's own generators as they were.
        loss: mean loss per token of a batch, differentiable.
        config: see :class:`TrainConfig`.
        parts: splits a batch into pieces that fit into memory, each with its share of the tokens; their gradients add.
        tokens: number of tokens of a batch that have a target; by default batches are ``(inputs, targets)``.
        scales: factors of the learning rate by parameter name, 1 for those that are not named; weights decay as if all
            were 1.
        evaluate: called every ``config.evaluate_every`` steps and at the end; its time is not counted as training.
        checkpoint: file to keep the state in; if it exists the run goes on from there, to the bit on the same machine
            with the same threads and version of torch.
        identity: what else makes this run this run, such as the hash of its data (JSON); a checkpoint of another one
            is refused.
        label: shown with the progress.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another model, configuration or identity.
        SpecError: a scale for a parameter that the model has not.
        NonFiniteError: a loss or gradient that is NaN or infinite, before the step is taken: parameters and checkpoint
            are those of the steps before.
        OutputError: the checkpoint's folder cannot be written, found before the first step.
        KeyboardInterrupt: after Ctrl-C, once the running step is done and the checkpoint written.
    """
    optimizer = torch.optim.AdamW(
        scaled_groups(model, scales or {}, config.weight_decay),
        lr=config.learning_rate,
        betas=config.betas,
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
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer.zero_grad(set_to_none=True)  # of whatever was done before
    progress: TrainingProgress | None = None
    with _interrupt_between_steps() as interrupted:
        try:
            while result.steps < config.steps:
                began = time.perf_counter()
                batch = sample(generator, result.steps)
                count = tokens(batch)
                if progress is None:
                    progress = TrainingProgress(label, config.steps, start=result.steps, tokens_per_step=count)
                    progress.__enter__()
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, result.steps) * group["scale"]
                value = 0.0
                with _seeded(model, config.seed, result.steps):
                    for part, share in parts(batch):
                        with fast_products():
                            scaled = loss(model, part) * share
                        scaled.backward()
                        value += scaled.item()
                        del scaled  # its graph, before the next one is made
                norm = torch.nn.utils.clip_grad_norm_(trained, config.clip_norm).item()
                if not (math.isfinite(value) and math.isfinite(norm)):
                    raise NonFiniteError(
                        f"step {result.steps + 1}: the loss is {value} and its gradient of norm {norm}; the parameters "
                        f"are those of step {result.steps}. A lower learning rate, more warm-up, or data without what "
                        "this batch holds may help"
                    )
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                result.losses.append(value)
                result.steps += 1
                result.tokens += count
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
            optimizer.zero_grad(set_to_none=True)
            if progress is not None:
                progress.__exit__(None, None, None)
    return result


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
