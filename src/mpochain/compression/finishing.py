"""What follows when the layers are built: refined blocks, and the comparison on data set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from mpochain.compression.blocks.refined_blocks import RefinedBlock
from mpochain.compression.blocks.refinement import refine_blocks
from mpochain.compression.blocks.refinement_settings import Refinement
from mpochain.compression.held_out import compared
from mpochain.compression.state import CompressionState
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.compression.statistics.passes import memory_for_statistics
from mpochain.compression.sufficiency import HeldOut
from mpochain.distributed import Team

__all__ = ["finished"]


def finished(
    model: nn.Module,
    built: Mapping[nn.Module, nn.Module],
    calibration: Iterable[Any],
    aside: Iterable[Any] | None,
    refinement: Refinement | None,
    *,
    loss: Callable[[Any], Tensor] | DefaultLoss,
    seed: int,
    state: CompressionState | None,
    team: Team,
) -> tuple[tuple[RefinedBlock, ...], HeldOut | None]:
    """Refine the blocks, and compare the model with the dense one on batches that were set aside.

    Of several processes the first one refines, and compares what it refined; otherwise they share the comparison.

    Args:
        model: the compressed model.
        built: compressed layer of each dense one.
        calibration: calibration batches.
        aside: batches that were set aside; None for no comparison.
        refinement: settings of the refinement; None for none.
        loss: loss whose gradients weight errors.
        seed: seed of the refinement.
        state: keeps the refined blocks, or has them; None to keep none.
        team: the processes.

    Returns:
        The record of each refined block, and the difference to the dense model.
    """
    if refinement is None:
        return (), None if aside is None else compared(model, built, calibration, aside, team=team)
    blocks: tuple[RefinedBlock, ...] = ()
    difference = None
    with team.together():
        if team.is_first:
            room = memory_for_statistics(model)
            refined = refine_blocks(
                model, built, calibration, aside, refinement, loss=loss, seed=seed, room=room, state=state
            )
            blocks = tuple(refined.blocks)
            if aside is not None:
                difference = compared(model, built, calibration, aside, originals=refined.originals)
    team.copied([*model.parameters(), *model.buffers()])
    return team.from_first((blocks, difference))
