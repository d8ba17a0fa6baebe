"""Sharding of the models of a training over the processes of torchrun."""

from __future__ import annotations

from torch import nn

from mpochain.distributed import shard_blocks, team_of_group
from mpochain.errors import ArgumentError, RecipeError
from mpochain.surgery.half_precision import HALF_DTYPES
from mpochain.workflows.recipe import Recipe

__all__ = ["require_several", "shard_for_training"]


def require_several(recipe: Recipe) -> None:
    """Refuse a sharded training in a single process, before anything is read.

    Raises:
        RecipeError: the recipe asks for it.
    """
    if recipe.finetune is not None and recipe.finetune.shard and team_of_group().is_alone:
        raise RecipeError(
            "finetune.shard (--shard) spreads parameters over several processes, and there is one; start them with "
            "torchrun --nproc-per-node N -m mpochain, or leave it out"
        )


def shard_for_training(model: nn.Module) -> None:
    """Shard a model that is trained, in all processes.

    Raises:
        RecipeError: parameters of the model are bfloat16 or float16, or of several types.
    """
    types = {value.dtype for value in model.parameters()}
    if len(types) == 1 and types & set(HALF_DTYPES):
        raise RecipeError(
            f"the model is {str(types.pop()).removeprefix('torch.')}, and a sharded training needs float32 parameters; "
            "add --dtype float32, and for products in bfloat16 --autocast bfloat16"
        )
    try:
        shard_blocks(model)
    except ArgumentError as error:
        raise RecipeError(f"finetune.shard: {error}") from error
