"""Parameters that are sharded over several processes (FSDP2, DTensor)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = [
    "filled",
    "full",
    "gathered",
    "is_managed",
    "is_shard",
    "is_sharded",
    "local_part",
    "reshard",
    "whole_on_first",
    "without_gradients",
]

Key = TypeVar("Key")

# torch marks so every module whose parameters FSDP gathers for a call, of both generations of FSDP.
_MANAGED = "_is_fsdp_managed_module"


def is_managed(module: nn.Module) -> bool:
    """Whether FSDP gathers the parameters of a module for every call.

    Such a parameter is filled with new numbers at the same address, without another version.

    Example:
        >>> is_managed(nn.Linear(2, 2))
        False
    """
    return _MANAGED in module.__dict__


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters or buffers of a model are spread over processes.

    Example:
        >>> is_sharded(nn.Linear(2, 2))
        False
    """
    return bool(_fsdp_modules(model)) or any(map(is_shard, (*model.parameters(), *model.buffers())))


def reshard(model: nn.Module) -> None:
    """Give a model back the parameters that are trained, if FSDP2 gathered some for a call.

    After a call without gradients the outermost module keeps the gathered parameters. They are other objects than the
    shards: an optimiser that holds them trains nothing, and freezing them freezes nothing.

    Args:
        model: modules without FSDP2 are not changed.

    Example:
        >>> reshard(nn.Linear(2, 2))
    """
    for module in _fsdp_modules(model):
        module.reshard()


def full(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in one piece; every process that holds a shard must call it.

    Example:
        >>> full(torch.ones(2))
        tensor([1., 1.])
    """
    if not is_shard(tensor):
        return tensor
    shard: Any = tensor.detach()
    # Shards on the CPU of a model that computes elsewhere (CPUOffloadPolicy) are sent by that device.
    unsharded: Tensor = shard.to(shard.device_mesh.device_type).full_tensor()
    return unsharded


def gathered(tensors: Mapping[Key, Tensor], *, keeps: bool) -> dict[Key, Tensor]:
    """Tensors in one piece; every process must call it with the same names.

    Args:
        tensors: tensors by name; one by one, so that a process that keeps none never holds more than one.
        keeps: whether this process gets them.

    Returns:
        The tensors, those that were sharded on the CPU; nothing in a process that does not keep them.

    Example:
        >>> gathered({"weight": torch.ones(1)}, keeps=True), gathered({"weight": torch.ones(1)}, keeps=False)
        ({'weight': tensor([1.])}, {})
    """
    unsharded: dict[Key, Tensor] = {}
    for name, tensor in tensors.items():
        value = full(tensor)
        if keeps:
            unsharded[name] = value.cpu() if is_shard(tensor) else value
    return unsharded


def filled(like: Tensor, numbers: Tensor) -> Tensor:
    """A tensor with the layout, type and device of another one, and these numbers.

    Args:
        like: a plain tensor, or a shard.
        numbers: in one piece, the same in every process.

    Example:
        >>> filled(torch.empty(2, dtype=torch.float64), torch.ones(2))
        tensor([1., 1.], dtype=torch.float64)
    """
    if not is_shard(like):
        return torch.empty_like(like).copy_(numbers)
    from torch.distributed.tensor import distribute_tensor

    shard: Any = like
    numbers = numbers.to(shard.device, shard.dtype)
    # Without a source each process takes its part of the numbers that it has.
    return distribute_tensor(numbers, shard.device_mesh, shard.placements, src_data_rank=None)


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; the tensor itself if it is not sharded.

    Example:
        >>> local_part(torch.ones(2))
        tensor([1., 1.])
    """
    if not is_shard(tensor):
        return tensor
    shard: Any = tensor.detach()
    part: Tensor = shard.to_local()
    return part


def without_gradients(model: nn.Module) -> AbstractContextManager[object]:
    """A context that computes no gradients: ``torch.inference_mode``, or ``torch.no_grad`` for a sharded model.

    FSDP2 writes what it gathers to tensors that it made before, which inference mode does not allow.

    Example:
        >>> with without_gradients(nn.Linear(2, 2)):
        ...     torch.is_inference_mode_enabled()
        True
    """
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()


@contextmanager
def whole_on_first(model: nn.Module, *, is_first: bool) -> Iterator[None]:
    """The plain model in the first process: its tensors in one piece, tied ones tied, its modules of their own classes.

    Every process must enter it. In the others the model does not change, and on exit it is sharded everywhere.

    Args:
        model: a model of any kind; without shards nothing is done.
        is_first: whether this process is the first.

    Example:
        >>> with whole_on_first(nn.Linear(2, 2), is_first=True):
        ...     pass
    """
    reshard(model)
    places: list[tuple[dict[str, Any], str, Tensor]] = [
        (tensors, name, tensor)
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None and is_shard(tensor)
    ]
    shards = {id(tensor): tensor for _, _, tensor in places}
    pieces = {
        key: nn.Parameter(value, shards[key].requires_grad) if isinstance(shards[key], nn.Parameter) else value
        for key, value in gathered(shards, keeps=is_first).items()
    }
    classes = [(module, type(module)) for module in _fsdp_modules(model)]
    try:
        if is_first:
            for tensors, name, tensor in places:
                tensors[name] = pieces[id(tensor)]
            for module, kind in classes:
                module.__class__ = kind.__mro__[kind._orig_cls_mro_index]
        yield
    finally:
        for tensors, name, tensor in places:
            tensors[name] = tensor
        for module, kind in classes:
            module.__class__ = kind


def _fsdp_modules(model: nn.Module) -> list[Any]:
    """The modules to which ``fully_shard`` was applied; its package, which takes long to import, is not imported."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return [] if kind is None else [module for module in model.modules() if isinstance(module, kind)]


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process may hold a part.

    Example:
        >>> is_shard(torch.ones(2))
        False
    """
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(tensor, kind)
