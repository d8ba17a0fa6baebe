"""Ties: output heads tied to an embedding, and names that share a tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mpochain.errors import DTypeError
from mpochain.nn.embeddings import tied_head
from mpochain.surgery.finding import compressed_layers

__all__ = ["address_of", "state_ties", "tied_head", "tied_linears", "ties_of", "view_of"]


def tied_linears(model: nn.Module, embeddings: Iterable[nn.Module]) -> dict[nn.Linear, nn.Embedding]:
    """Find the dense heads tied to any of these embeddings, and map each to its embedding.

    Args:
        model: the model; not changed.
        embeddings: embeddings of the model; other modules are ignored.

    Raises:
        DTypeError: a module other than a plain ``nn.Linear`` without bias shares the table of an embedding.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
        >>> model[1].weight = model[0].weight
        >>> tied_linears(model, [model[0]])
        {Linear(in_features=4, out_features=9, bias=False): Embedding(9, 4)}
    """
    tables = {id(module.weight): module for module in embeddings if isinstance(module, nn.Embedding)}
    heads: dict[nn.Linear, nn.Embedding] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            table = tables.get(id(parameter))
            if table is None or module is table:
                continue
            plain = type(module).forward is nn.Linear.forward and "bias" not in dict(module.named_parameters())
            if not (isinstance(module, nn.Linear) and plain):
                raise DTypeError(
                    f"{name} shares the table of an embedding; only a plain nn.Linear without bias can be tied to a "
                    f"compressed one, got {type(module).__name__}"
                )
            heads[module] = table
    return heads


def address_of(tensor: Tensor) -> int | None:
    """Where the numbers of a tensor lie in memory, in bytes; None if they lie at no place of their own.

    Shards, other tensors that wrap tensors, tensors without elements and those on the meta device have no address, and
    torch states 0 for all of them. Two of them are the same only if they are the same object.

    Example:
        >>> [address_of(nn.Linear(2, 2, device=device).weight) is None for device in ("meta", "cpu")]
        [True, False]
    """
    if is_lazy(tensor) or is_traceable_wrapper_subclass(cast("Any", tensor)) or tensor.is_meta or not tensor.numel():
        return None
    return tensor.data_ptr() or None


def view_of(tensor: Tensor) -> tuple[object, ...]:
    """A key that is equal for tensors which are the same view of the same memory, or the same object.

    Views of one storage with another shape, stride, offset or type have other keys. The key of a tensor without an
    address means nothing after the tensor is gone.

    Example:
        >>> table = nn.Linear(2, 2).weight
        >>> view_of(table) == view_of(table.detach()), view_of(table) == view_of(table.T)
        (True, False)
    """
    address = address_of(tensor)
    if address is None:
        return (id(tensor),)
    return tensor.device, address, tensor.shape, tensor.stride(), tensor.dtype


def ties_of(model: nn.Module) -> dict[str, str]:
    """Names of tied tensors in a model's state dict, each with the first name of the same tensor.

    Tied are the same object and, where it has an address, the same view of the same memory.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
        >>> model[1].weight = model[0].weight
        >>> ties_of(model)
        {'1.weight': '0.weight'}
    """
    first: dict[tuple[object, ...], str] = {}
    ties: dict[str, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):  # extra state of a module
            continue
        place = view_of(value)
        if first.setdefault(place, name) != name:
            ties[name] = first[place]
    return ties


def state_ties(model: nn.Module) -> None:
    """Tell a model of transformers which of its tensors are tied now, as its class only knows those of dense layers.

    Of a model without compressed layers, its class is asked again. Other models are not changed.

    Args:
        model: two attributes of it, and of models within it, are set.

    Example:
        >>> state_ties(nn.Sequential(nn.Linear(2, 2)))
    """
    for part in model.modules():
        if not hasattr(type(part), "get_expanded_tied_weights_keys"):
            continue
        of_transformers: Any = part
        vars(part).pop("_tied_weights_keys", None)
        if compressed_layers(part):
            ties = ties_of(part)
            # Patterns in transformers, which would find core_0_1 in core_0_10, too.
            patterns = {f"{re.escape(name)}$": f"{re.escape(first)}$" for name, first in ties.items()}
            of_transformers._tied_weights_keys = patterns
        else:
            ties = of_transformers.get_expanded_tied_weights_keys(all_submodels=True)
        of_transformers.all_tied_weights_keys = ties
