"""Layers that share their parameters with other modules, so that they cannot be replaced one by one."""

from __future__ import annotations

from torch import Tensor, nn

from mpochain.surgery.tying import address_of

__all__ = ["no_head_of", "shared_modules"]


def shared_modules(model: nn.Module) -> dict[nn.Module, str]:
    """Modules that hold a parameter which another module holds too, with the name of the first such module.

    Parameters count as one if they are the same object or lie at the same place in memory.

    Args:
        model: not changed.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
        >>> model[2].weight = model[0].weight
        >>> list(shared_modules(model).values())
        ['2', '0']
    """
    holders: dict[tuple[int, ...], list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(_place(parameter), []).append((name, module))
    shared: dict[nn.Module, str] = {}
    for held in holders.values():
        for _, module in held:
            others = [name for name, other in held if other is not module]
            if others:
                shared.setdefault(module, others[0])
    return shared


def no_head_of(model: nn.Module, embedding: nn.Embedding) -> str | None:
    """Name of a module that shares the table of an embedding and cannot become a head tied to its replacement.

    Args:
        model: the model; not changed.
        embedding: an embedding of the model.

    Returns:
        The first such name; None if there is none.
    """
    place = _place(embedding.weight)
    for name, module in model.named_modules():
        if module is embedding or all(_place(parameter) != place for parameter in module.parameters(recurse=False)):
            continue
        plain = type(module).forward is nn.Linear.forward and module._parameters.get("bias") is None
        if not plain or module._parameters.get("weight") is not embedding.weight:
            return name
    return None


def _place(parameter: Tensor) -> tuple[int, ...]:
    """Identifies the numbers of a parameter: their place in memory, or the object if it has none."""
    address = address_of(parameter)
    return (id(parameter),) if address is None else (address, parameter.numel())
