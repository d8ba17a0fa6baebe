"""Element types of stored tensors, compared with those that the model's layers can compute with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mpochain.errors import ArgumentError
from mpochain.nn import CompressedLayer
from mpochain.nn.dense import dense_shape

__all__ = ["DTYPES", "require_elements", "require_storable", "same_kind"]

# Element types by their safetensors names.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
# Types in which torch computes products.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Types of indices, which torch uses interchangeably.
_INDICES = (torch.int32, torch.int64)


def require_elements(model: nn.Module, stored: Mapping[str, str]) -> None:
    """Check the element types of stored tensors against the model that they are for.

    Floating-point tensors may have any type that torch computes in, and all of a compressed or dense layer must have
    the same one, except for those with a type of their own, such as scales of codes. Other tensors must have the type
    of the model's.

    Args:
        model: the model, whose tensors may be on the meta device.
        stored: safetensors name of the element type of each tensor in the model's state dict.

    Raises:
        ArgumentError: another type. The message names the tensor.

    Example:
        >>> require_elements(nn.Linear(2, 2), {"weight": "F16", "bias": "F16"})
    """
    expected = model.state_dict()
    for name, element in stored.items():
        wanted = expected[name].dtype
        if not same_kind(element, wanted):
            raise ArgumentError(f"{name} has elements of type {element}, expected {_expected(wanted)}")
    for prefix, layer in model.named_modules():
        if not isinstance(layer, CompressedLayer | nn.Embedding) and dense_shape(layer) is None:
            continue
        own = layer.own_types() if isinstance(layer, CompressedLayer) else {}
        types: dict[str, str] = {}
        for name, value in layer.state_dict().items():
            full = f"{prefix}.{name}" if prefix else name
            if full in stored and name in own and DTYPES.get(stored[full]) != own[name]:
                names = {dtype: element for element, dtype in DTYPES.items()}
                raise ArgumentError(f"{full} has elements of type {stored[full]}, expected {names[own[name]]}")
            if full in stored and name not in own and value.dtype in _FLOATS:
                types.setdefault(stored[full], full)
        if len(types) > 1:
            listed = " and ".join(f"{name} of type {element}" for element, name in list(types.items())[:2])
            raise ArgumentError(f"a layer holds {listed}; expected one type of floating-point numbers per layer")


def require_storable(model: nn.Module) -> None:
    """Check that a checkpoint can hold every value of a model's state dict.

    Raises:
        ArgumentError: a value that is no plain tensor with elements, of a type that files do not have, or layers whose
            tensors have several floating-point types. The message names the tensor.

    Example:
        >>> require_storable(nn.Linear(2, 2))
    """
    names = {dtype: element for element, dtype in DTYPES.items()}
    stored = {}
    for name, value in model.state_dict().items():
        problem = _problem(value)
        if problem is not None:
            raise ArgumentError(
                f"{name} {problem}, which a checkpoint cannot hold; make it an ordinary tensor with values first, or "
                "keep it outside of the model's state"
            )
        stored[name] = names[value.dtype]
    require_elements(model, stored)


def _problem(value: object) -> str | None:
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__} instead of a tensor"
    if is_traceable_wrapper_subclass(tensor := cast("Any", value)):
        return f"is a {type(tensor).__name__}"
    if value.device.type == "meta":
        return "is on the meta device, without values"
    if value.layout != torch.strided:
        return f"has the layout {value.layout}"
    return None if value.dtype in DTYPES.values() else f"has elements of type {value.dtype}"


def same_kind(element: str, wanted: torch.dtype) -> bool:
    """True if a stored element type, by its safetensors name, can take the place of another.

    Example:
        >>> same_kind("F16", torch.float32), same_kind("I8", torch.int32)
        (True, False)
    """
    dtype = DTYPES.get(element)
    if dtype == wanted:
        return True
    return (dtype in _FLOATS and wanted in _FLOATS) or (dtype in _INDICES and wanted in _INDICES)


def _expected(wanted: torch.dtype) -> str:
    names = {dtype: name for name, dtype in DTYPES.items()}
    group = next((group for group in (_FLOATS, _INDICES) if wanted in group), (wanted,))
    return " or ".join(names.get(dtype, str(dtype)) for dtype in group)
