"""Sequential compression, in which layers make up for the drift of the hidden states that earlier ones caused.

Only layers that write the hidden states of their block are corrected, see
:mod:`mpochain.compression.blocks.writers`; all others are compressed as they are. How strongly a layer is corrected is
chosen on held-out batches, and a correction is kept only if it lowers their error at the end of the block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.blocks.batches import divided, listed
from mpochain.compression.blocks.calls import block_calls
from mpochain.compression.blocks.stack_correction import OPTION, StackCorrection
from mpochain.compression.blocks.stacks import largest_stack
from mpochain.compression.building import Builder
from mpochain.compression.layer_record import NONE_CORRECTED
from mpochain.compression.limit import Limit
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.compression.statistics.moments import frozen
from mpochain.compression.target import Target
from mpochain.surgery.calls import without_cache
from mpochain.surgery.replacement import replace_layers
from mpochain.system.progress import TimeLeft

__all__ = ["build_in_sequence", "require_sequence"]

_logger = logging.getLogger(__name__)


def require_sequence(
    model: nn.Module, targets: Mapping[str, Target], calibration: Iterable[Any], held_out: Iterable[Any] | None
) -> tuple[list[Any], list[Any]]:
    """The batches to fit to and those held out, after a check that the model's blocks run one after the other.

    Raises:
        ArgumentError: the model has no such blocks, or there are too few batches.
    """
    stack = largest_stack(model, {target.module for target in targets.values()}, OPTION)
    batches = listed(calibration)
    with frozen(model), without_cache(model), torch.no_grad():
        for batch in batches:
            if block_calls(model, stack.blocks, batch, option=OPTION):
                break
    return divided(batches, held_out, OPTION)


def build_in_sequence(
    model: nn.Module,
    targets: Mapping[str, Target],
    batches: tuple[Sequence[Any], Sequence[Any]],
    builder: Builder,
    limit: Limit,
    *,
    loss: Callable[[Any], Tensor] | DefaultLoss | None,
    room: int,
    dry_run: bool,
) -> None:
    """Compress layers block by block, in place; a dry run or any exception leaves the model as it was.

    Layers outside of the largest stack of blocks are compressed first, without correction.

    Args:
        model: model whose blocks are the items of one ``nn.ModuleList`` or ``nn.Sequential``; the first argument of
            each block is the first output of the previous one.
        targets: dense layers by name.
        batches: batches to fit to and held-out ones, see :func:`require_sequence`.
        builder: builder of the layers.
        limit: limit of all layers together.
        loss: loss whose gradients weight the errors of the blocks' outputs; None for no weights.
        room: bytes of hidden states that may be held in memory.
        dry_run: whether the model is dense again afterwards.
    """
    standing: dict[nn.Module, nn.Module] = {}  # what stands in the model for each dense layer
    finished = False
    try:
        with frozen(model), without_cache(model), torch.no_grad():
            with closing(StackCorrection(model, targets, batches, builder, standing, loss, room)) as sequence:
                left = TimeLeft(len(sequence.stack.blocks))
                for number in range(len(sequence.stack.blocks)):
                    _logger.info("block %s", left.after(number) if number else f"1 of {len(sequence.stack.blocks)}")
                    sequence.build(number)
            if not (sequence.writers_found or any(record.mixing is not None for record in builder.records.values())):
                _logger.warning("%s: %s", OPTION, NONE_CORRECTED)
        builder.verify(limit)
        finished = not dry_run
    finally:
        if not finished:
            replace_layers(model, {layer: dense for dense, layer in standing.items()})
