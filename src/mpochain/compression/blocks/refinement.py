"""Refinement of a compressed model: block by block, all parameters are trained on the dense block's outputs.

A block reads its inputs in the compressed model and is trained on the outputs of the dense block in the dense model, so
that it also corrects the errors of the blocks before it. Held-out batches decide which state is kept, and a block that
gains nothing stays as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.blocks.batches import divided
from mpochain.compression.blocks.calls import block_calls
from mpochain.compression.blocks.refined_blocks import RefinedBlock, described
from mpochain.compression.blocks.refinement_settings import Refinement
from mpochain.compression.blocks.stack_refinement import OPTION, StackRefinement, trainable_parameters
from mpochain.compression.blocks.stacks import Stack, stacks
from mpochain.compression.state import CompressionState
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.compression.statistics.moments import frozen
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError
from mpochain.surgery.calls import without_cache
from mpochain.surgery.replacement import replace_layers
from mpochain.system.progress import TimeLeft

__all__ = ["Refined", "refine_blocks", "require_data_to_refine", "require_refinable"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Refined:
    """Result of a refinement.

    Attributes:
        blocks: record of each block, in the order of the model.
        originals: values in the dense model of the changed parameters outside of compressed layers, such as norms.
    """

    blocks: list[RefinedBlock]
    originals: dict[nn.Parameter, Tensor]


def require_refinable(model: nn.Module, targets: Mapping[str, Target]) -> None:
    """Refuse a model without blocks that can be refined; needs no data.

    Raises:
        ArgumentError: the model has no blocks, or no parameter of a block requires gradients.
    """
    candidates = stacks(model, {target.module for target in targets.values()})
    if not candidates:
        raise ArgumentError(
            f"{OPTION} needs a model with its blocks in an nn.ModuleList or nn.Sequential; leave it out"
        )
    allowed = _requiring_gradients(model)
    if not any(trainable_parameters(model, block, allowed) for stack in candidates for block in stack.blocks):
        raise ArgumentError(
            f"{OPTION}, but no parameter of a block requires gradients; call model.requires_grad_(True), or leave it "
            "out"
        )


def require_data_to_refine(
    model: nn.Module,
    targets: Mapping[str, Target],
    calibration: Iterable[Any] | None,
    held_out: Iterable[Any] | None,
) -> None:
    """Refuse, before the work of a compression, data or calls of the blocks with which no block can be refined.

    Raises:
        ArgumentError: data are missing, or the blocks do not run one after the other.
    """
    if calibration is None:
        raise ArgumentError(f"{OPTION} needs calibration= batches to train on; give some, or leave it out")
    batches, _ = divided(calibration, held_out, OPTION)
    candidates = stacks(model, {target.module for target in targets.values()})
    with frozen(model), without_cache(model), torch.no_grad():
        refusals = [_refusal(model, stack, batches[0]) for stack in candidates]
    if all(refusals):
        raise ArgumentError(refusals[0])


def refine_blocks(
    model: nn.Module,
    built: Mapping[nn.Module, nn.Module],
    calibration: Iterable[Any],
    held_out: Iterable[Any] | None,
    settings: Refinement,
    *,
    loss: Callable[[Any], Tensor] | DefaultLoss,
    seed: int,
    room: int,
    state: CompressionState | None = None,
) -> Refined:
    """Train the blocks of a compressed model in place, in the order of the model.

    Parameters that do not require gradients, or that a module outside of the block holds too, stay as they are. Any
    exception leaves the model dense and as it was.

    Args:
        model: the compressed model.
        built: compressed layer of each dense one; the dense layers take their places for a time.
        calibration: batches to train on.
        held_out: batches that decide which state is kept; None to hold out one of eight calibration batches.
        settings: passes over the data and learning rate.
        loss: loss whose gradients weight the errors of outputs, see :func:`mpochain.compress`.
        seed: seed of the order of the batches.
        room: bytes of hidden states that may be held in memory; more are held in a temporary file.
        state: keeps refined blocks, and has those of an interrupted run; None to keep none.

    Raises:
        ArgumentError: the model has no blocks that run one after the other.
        NonFiniteError: a block's outputs are NaN or infinite; the message names the block.
    """
    training, aside = divided(calibration, held_out, OPTION)
    allowed = _requiring_gradients(model)
    chosen = stacks(model, set(built.values()))
    left = TimeLeft(sum(len(stack.blocks) for stack in chosen))
    result, done = Refined([], {}), 0
    try:
        with frozen(model), without_cache(model), torch.no_grad():
            for stack in chosen:
                refusal = _refusal(model, stack, training[0])
                if refusal:
                    _logger.warning("the blocks in %s are not refined: %s", stack.name or "the model", refusal)
                    done += len(stack.blocks)
                    continue
                if isinstance(loss, DefaultLoss):
                    loss.restart()
                refinement = StackRefinement(
                    model, stack, built, training, aside, room, loss if settings.gradients else None
                )
                with closing(refinement):
                    for number in range(len(stack.blocks)):
                        record = refinement.refine_block(number, allowed, settings, seed, state, result.originals)
                        done += 1
                        if record is not None:
                            result.blocks.append(record)
                            _logger.info("%s, block %s", described(record), left.after(done))
    except BaseException:
        with torch.no_grad():
            for parameter, value in result.originals.items():
                parameter.copy_(value)
        replace_layers(model, {layer: dense for dense, layer in built.items()})
        raise
    return result


def _requiring_gradients(model: nn.Module) -> set[int]:
    return {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def _refusal(model: nn.Module, stack: Stack, batch: Any) -> str:
    """Why the blocks of a stack cannot be refined; "" if they can."""
    if len(set(stack.blocks)) < len(stack.blocks):
        return f"{OPTION} needs a separate module for each block; leave it out"
    try:
        block_calls(model, stack.blocks, batch, option=OPTION)
    except ArgumentError as error:
        return str(error)
    return ""
