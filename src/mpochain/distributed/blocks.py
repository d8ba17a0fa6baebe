"""Sharding of a model block by block (FSDP2), each core along an axis that the processes can share."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from mpochain.errors import ArgumentError

__all__ = ["shard_blocks"]


def shard_blocks(model: nn.Module) -> nn.Module:
    """Spread the parameters of a model over the processes of the default group, block by block, in place.

    The blocks are the items of the outermost ``nn.ModuleList`` containers, such as ``model.layers``; what is outside of
    them is one part more. A block's parameters are in one piece only while the block computes. A tensor is divided
    along its longest axis that the processes share evenly: cores at the start of a chain have one row, so that FSDP2's
    own choice, the rows, would leave them in one process.

    Args:
        model: the same in every process, which all call this; on the device where it computes. On the CPU its tensors
            may be mapped from a file.

    Returns:
        The model.

    Raises:
        ArgumentError: there is no process group, the model is a container without forward, parameters of a part have
            several types, such as the scales of layers in codes, or one has no axis.

    Example:
        >>> shard_blocks(nn.Linear(2, 2))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        mpochain.errors.ArgumentError: the model is sharded over the processes of a group, and there is none; ...
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ArgumentError(
            "the model is sharded over the processes of a group, and there is none; start the program with torchrun, "
            "and call torch.distributed.init_process_group"
        )
    if _is_container(model):
        raise ArgumentError(f"a {type(model).__name__} is never called itself; shard the model that it belongs to")
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    size = dist.get_world_size()

    def placement(parameter: Tensor) -> Any:
        even = [axis for axis in range(parameter.ndim) if parameter.shape[axis] % size == 0]
        return Shard(max(even, key=lambda axis: parameter.shape[axis])) if even else None

    blocks = [block for block in _blocks(model) if any(True for _ in block.parameters())]
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    rest = [(name, parameter) for name, parameter in model.named_parameters() if id(parameter) not in inside]
    for part in (*(list(block.named_parameters()) for block in blocks), rest):
        _require_shardable(part)
    for block in blocks:
        fully_shard(block, shard_placement_fn=placement)
    fully_shard(model, shard_placement_fn=placement)
    return model


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The items of all ``nn.ModuleList`` containers that are in no other block."""
    if not isinstance(model, nn.ModuleList):
        return [block for child in model.children() for block in _blocks(child)]
    return [block for item in model for block in (_blocks(item) if _is_container(item) else [item])]


def _is_container(module: nn.Module) -> bool:
    """Whether a module is never called, so that nothing would be gathered for it."""
    return isinstance(module, nn.ModuleList | nn.ModuleDict)


def _require_shardable(parameters: list[tuple[str, nn.Parameter]]) -> None:
    """Check the parameters of one part, which FSDP2 moves as one tensor."""
    for name, parameter in parameters:
        first, other = parameters[0]
        if parameter.dtype != other.dtype:
            raise ArgumentError(
                f"{name} is {parameter.dtype} and {first} {other.dtype}, and what is sharded together has one type; "
                "give all of them one type first, and do not shard layers in codes, whose scales are float16"
            )
        if not parameter.ndim:
            raise ArgumentError(f"{name} has no axis to be sharded along; make it a tensor of one axis")
