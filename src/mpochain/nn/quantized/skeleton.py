"""Layers taken apart and put together: modules that hold a layer's tensors, and layers filled with other tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from mpochain.execution.tracing import is_traced
from mpochain.nn.quantized.coded import CodedTensor

__all__ = ["filled", "holder_of", "tensors_of"]

Module = TypeVar("Module", bound=nn.Module)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module and its submodules, by path.

    Example:
        >>> list(tensors_of(nn.Sequential(nn.Linear(2, 2))))
        ['0.weight', '0.bias']
    """
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def holder_of(module: nn.Module, coded: Mapping[str, CodedTensor], prefix: str = "") -> nn.Module:
    """A module that holds copies of the tensors of another one, under the same paths, and codes in place of some.

    Args:
        module: a layer or a part of it.
        coded: the tensors in codes, by path; the codes have no values yet.
        prefix: path of ``module`` in the layer, with a dot at its end.

    Example:
        >>> from mpochain.quantization import Scheme
        >>> coded = CodedTensor("weight", (2, 64), Scheme(4))
        >>> list(holder_of(nn.Linear(64, 2), {"weight": coded}).state_dict())
        ['weight_scale', 'bias', 'weight_packed', 'weight_zero_point']
    """
    holder = nn.Module()
    for name, parameter in module._parameters.items():
        tensor = coded.get(prefix + name)
        if tensor is not None and parameter is not None:
            tensor.register(holder, parameter.device)
        else:
            copied = None if parameter is None else nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            holder.register_parameter(name, copied)
    for name, buffer in module._buffers.items():
        holder.register_buffer(name, None if buffer is None else buffer.detach().clone())
    for name, child in module.named_children():
        holder.add_module(name, holder_of(child, coded, f"{prefix}{name}."))
    return holder


def filled(
    module: Module, holder: nn.Module, coded: Mapping[str, CodedTensor], dtype: torch.dtype, prefix: str = ""
) -> Module:
    """A module like another one, with the tensors of a holder; those in codes are dequantised to ``dtype``.

    Only the dictionaries of tensors and submodules are new, so that this takes microseconds.

    Example:
        >>> from mpochain.quantization import Scheme
        >>> coded = {"weight": CodedTensor("weight", (2, 64), Scheme(4))}
        >>> linear = nn.Linear(64, 2)
        >>> filled(linear, holder_of(linear, coded), coded, torch.float64).weight.dtype
        torch.float64
    """
    twin = object.__new__(type(module))
    vars(twin).update(vars(module))
    parameters: dict[str, Tensor | None] = {}
    for name in module._parameters:
        tensor = coded.get(prefix + name)
        value = getattr(holder, name) if tensor is None else tensor.dequantised(holder, dtype)
        # A layer may compute in place only with parameters.
        plain = tensor is not None and not (value.requires_grad or is_traced())
        parameters[name] = nn.Parameter(value, requires_grad=False) if plain else value
    vars(twin)["_parameters"] = parameters
    vars(twin)["_buffers"] = {name: getattr(holder, name) for name in module._buffers}
    vars(twin)["_modules"] = {
        name: None if child is None else filled(child, getattr(holder, name), coded, dtype, f"{prefix}{name}.")
        for name, child in module._modules.items()
    }
    return twin
