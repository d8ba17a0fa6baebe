"""Training of one block on given outputs, with early stop on held-out batches."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpochain.compression.blocks.refinement_settings import Refinement
from mpochain.errors import NonFiniteError
from mpochain.execution import fast_products
from mpochain.surgery.half_precision import HALF_DTYPES, in_float32
from mpochain.system.processor import multiplies_bfloat16

__all__ = ["BlockExample", "Outcome", "held_out_error", "relative_error", "train_block"]

_logger = logging.getLogger(__name__)

# Largest learning rate of a matrix, as a share of the root mean square of its entries: AdamW changes each entry by
# about the rate, and the scales of quantised weights are a hundred times smaller than other parameters.
_LARGEST_CHANGE = 0.01
# Share of the steps during which the learning rate rises.
_WARM_UP = 0.05
_CLIP_NORM = 1.0
# Rows whose power is below this share of the median row's power are compared as if they had it.
_LEAST_POWER = 1e-3
# Seconds between two progress messages.
_INTERVAL = 30.0


@dataclass(frozen=True, eq=False)
class BlockExample:
    """What a block is trained on.

    Attributes:
        run: function from a block to its outputs ``(..., features)`` for its inputs in the compressed model.
        target: outputs of the dense block in the dense model.
        kept: which rows of the outputs count, bool, one entry per row; None if all do.
        factor: see :func:`relative_error`.
    """

    run: Callable[[nn.Module], Tensor]
    target: Tensor
    kept: Tensor | None
    factor: Tensor | None = None

    def error(self, block: nn.Module) -> Tensor:
        """Error of a block's outputs, see :func:`relative_error`."""
        return relative_error(self.run(block), self.target, self.kept, self.factor)


@dataclass(frozen=True)
class Outcome:
    """Result of training a block.

    Attributes:
        before: held-out error before the training.
        after: held-out error of the kept state.
        epochs: passes over the data until the kept state; 0 if the block was left as it was.
    """

    before: float
    after: float
    epochs: int


def relative_error(output: Tensor, target: Tensor, kept: Tensor | None = None, factor: Tensor | None = None) -> Tensor:
    """Mean over rows of the squared error relative to the square of the target's row; zero without a row that counts.

    Rows of little or no power are compared as if they had a thousandth of the median row's.

    Args:
        output: ``(..., features)``.
        target: of the same shape.
        kept: which rows count, bool, one entry per row; None if all do.
        factor: ``L (features, features)`` if the error ``e`` of a row is measured as ``|L^T e|``; None for ``|e|``.

    Example:
        >>> target = torch.tensor([[1.0, 0.0], [0.0, 10.0]])
        >>> relative_error(target * 1.1, target)
        tensor(0.0100)
    """
    width = target.shape[-1] if target.ndim else 1
    wanted, own = target.reshape(-1, width), output.reshape(-1, width)
    if kept is not None:
        wanted, own = wanted[kept.to(wanted.device)], own[kept.to(own.device)]
    dtype = torch.promote_types(wanted.dtype, torch.float32)
    wanted, own = wanted.to(dtype), own.to(dtype)
    power = wanted.square().sum(-1)
    if not power.any():
        return own.square().sum() * 0.0
    floor = _LEAST_POWER * power[power > 0].median()
    error = own - wanted if factor is None else (own - wanted) @ factor.to(own.device, dtype)
    return (error.square().sum(-1) / power.clamp(min=float(floor))).mean()


def train_block(
    block: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    training: Callable[[int], BlockExample],
    count: int,
    held_out: Callable[[], Iterator[BlockExample]],
    settings: Refinement,
    *,
    seed: int,
    rates: Mapping[str, float] | None = None,
    label: str = "block",
) -> Outcome:
    """Train parameters of a block in place and keep the state with the smallest held-out error, or the first one.

    The block is trained in evaluation mode, without dropout. Parameters in bfloat16 or float16 are trained as float32;
    the held-out error is that of the block in its own types.

    Args:
        block: the block; parameters that are not among ``parameters`` stay as they are.
        parameters: parameters to train, by name; they do not require gradients before and afterwards.
        training: function from the number of a batch to what is trained on.
        count: number of batches to train on.
        held_out: function that returns what the error is measured on.
        settings: passes, learning rate and patience.
        seed: seed of the order of the batches.
        rates: peak learning rates of some parameters, by name, in place of that of the settings.
        label: name of the block, for messages.

    Raises:
        NonFiniteError: the block's outputs are NaN or infinite before the training.
    """
    before = best = held_out_error(block, held_out)
    if not math.isfinite(before):
        raise NonFiniteError(
            f"{label}: its outputs on held-out data are NaN or infinite; compress with a larger budget or a wider "
            "dtype, or leave out refine=True"
        )
    if before == 0 or not count or not parameters:
        return Outcome(before, before, 0)
    state, best_epoch = _copies(parameters), 0
    optimizer = _optimizer(parameters, settings.learning_rate, rates or {})
    generator = torch.Generator().manual_seed(seed)
    steps, step, last = settings.epochs * count, 0, time.monotonic()
    halves = {name: parameter for name, parameter in parameters.items() if parameter.dtype in HALF_DTYPES}
    masters: dict[str, Tensor] = {}
    for epoch in range(1, settings.epochs + 1):
        with in_float32(block), torch.enable_grad():
            _restore(parameters, masters)
            for number in torch.randperm(count, generator=generator).tolist():
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * _rate_factor(step, steps)
                if not _take_step(block, parameters, training(number), optimizer):
                    _logger.warning("%s: a training step diverged, so its training ends", label)
                    break
                step += 1
                if time.monotonic() - last > _INTERVAL:
                    last = time.monotonic()
                    _logger.info("%s: training step %d of %d", label, step, steps)
            masters = _copies(halves)
        error = held_out_error(block, held_out)
        if error < best:
            best, best_epoch, state = error, epoch, _copies(parameters)
        if step < epoch * count or epoch - best_epoch >= settings.patience:
            break
    _restore(parameters, state)
    return Outcome(before, best, best_epoch)


def _take_step(
    block: nn.Module, parameters: Mapping[str, nn.Parameter], example: BlockExample, optimizer: torch.optim.Optimizer
) -> bool:
    """Take a step on one batch; False, without a step, if the loss or a gradient is NaN or infinite."""
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        with fast_products(), _products(example.target):
            loss = example.error(block)
        if not loss.requires_grad:  # no row of the batch counts, or the block ignores its parameters
            return True
        loss.backward()
        trained = [parameter for parameter in parameters.values() if parameter.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(trained, _CLIP_NORM)
        if not (math.isfinite(float(loss.detach())) and math.isfinite(float(norm))):
            return False
        optimizer.step()
        return True
    finally:
        optimizer.zero_grad(set_to_none=True)
        for parameter in parameters.values():
            parameter.requires_grad_(False)


def held_out_error(block: nn.Module, held_out: Callable[[], Iterator[BlockExample]]) -> float:
    """Mean error over the rows of all held-out batches, in the block's own types."""
    total, rows = 0.0, 0
    with torch.no_grad(), fast_products():
        for example in held_out():
            target = example.target
            counting = target.numel() // target.shape[-1] if example.kept is None else int(example.kept.sum())
            total += counting * float(example.error(block))
            rows += counting
    return total / max(rows, 1)


def _optimizer(
    parameters: Mapping[str, nn.Parameter], learning_rate: float, rates: Mapping[str, float]
) -> torch.optim.Optimizer:
    groups = []
    for name, parameter in parameters.items():
        peak = rates.get(name, learning_rate)
        if parameter.ndim > 1 and name not in rates:
            size = float(parameter.detach().float().square().mean().sqrt())
            peak = min(peak, _LARGEST_CHANGE * size) if size > 0 else peak
        groups.append({"params": [parameter], "lr": peak, "peak": peak})
    return torch.optim.AdamW(groups, weight_decay=0.0, fused=True)


def _rate_factor(step: int, steps: int) -> float:
    """Share of the peak learning rate in a step: linear warm-up, then cosine decay to zero."""
    warm_up = math.ceil(_WARM_UP * steps)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def _products(x: Tensor) -> AbstractContextManager[object]:
    """Context with products in bfloat16 on devices that are faster at it."""
    kind = x.device.type
    fast = torch.cuda.is_bf16_supported() if kind == "cuda" else kind == "cpu" and multiplies_bfloat16()
    return torch.autocast(kind, dtype=torch.bfloat16) if fast and x.dtype != torch.float64 else nullcontext()


def _copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _restore(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
