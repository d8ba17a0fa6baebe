"""Float32 instead of bfloat16 and float16: master weights for the time of a training run, and values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.distributed import is_shard
from mpochain.errors import ArgumentError
from mpochain.nn import CompressedLayer

__all__ = ["HALF_DTYPES", "as_float32", "in_float32", "in_own_types"]

# Element types in which small updates round to zero, so that they are trained as float32.
HALF_DTYPES = (torch.bfloat16, torch.float16)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Hold all bfloat16 and float16 tensors of a model as float32; they are rounded to their type again on exit.

    Parameters stay the same objects, so that tied parameters stay tied, and views of other tensors stay views.

    Raises:
        ArgumentError: such a tensor is sharded over processes, which would go on with the numbers of its own type.

    Example:
        >>> model = nn.Linear(2, 2, dtype=torch.bfloat16)
        >>> with in_float32(model):
        ...     print(model.weight.dtype)
        torch.float32
        >>> model.weight.dtype
        torch.bfloat16
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        if tensor.dtype in HALF_DTYPES and is_shard(tensor):
            raise ArgumentError(
                f"the model is sharded and has tensors of type {tensor.dtype}, which are float32 in training; convert "
                "it before it is sharded (model.float()), and give fully_shard a MixedPrecisionPolicy for products in "
                "another type"
            )
    halves = [(tensor, tensor.dtype, _shared(tensor)) for tensor in tensors if tensor.dtype in HALF_DTYPES]
    try:
        for tensor, _, _ in halves:
            _convert(tensor, tensor.data.float())
        yield
    finally:
        for tensor, dtype, shared in halves:
            _convert(tensor, tensor.data.to(dtype) if shared is None else shared.copy_(tensor.data))


@contextmanager
def in_own_types(model: nn.Module) -> Iterator[None]:
    """Round tensors that a layer stores in a type of its own, such as scales of codes, to it; restored on exit.

    For a model within :func:`in_float32` that is to be saved.

    Example:
        >>> from mpochain.nn import QuantizedLinear
        >>> from mpochain.quantization import Scheme
        >>> layer = QuantizedLinear.from_linear(nn.Linear(4, 4), Scheme(4))
        >>> with in_float32(layer), in_own_types(layer):
        ...     print(layer.weight_scale.dtype)
        torch.float16
    """
    layers = [module for module in model.modules() if isinstance(module, CompressedLayer)]
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for layer in layers:
            tensors = dict([*layer.named_parameters(), *layer.named_buffers()])
            for name, dtype in layer.own_types().items():
                tensor = tensors.get(name)
                if tensor is not None and tensor.dtype != dtype:
                    kept.append((tensor, tensor.data))
                    _convert(tensor, tensor.data.to(dtype))
        yield
    finally:
        for tensor, data in kept:
            _convert(tensor, data)


def as_float32(value: Any) -> Any:
    """A bfloat16 or float16 tensor as float32; anything else as it is.

    Example:
        >>> as_float32(torch.ones(1, dtype=torch.float16)).dtype, as_float32("causal")
        (torch.float32, 'causal')
    """
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF_DTYPES else value


def _shared(tensor: Tensor) -> Tensor | None:
    """The data of a tensor that is a part of a larger one, such as one expert of a mixture; None for other tensors."""
    data = tensor.data
    return data if data.untyped_storage().nbytes() > data.numel() * data.element_size() else None


def _convert(tensor: Tensor, data: Tensor) -> None:
    tensor.grad = None  # it would have another type
    tensor.data = data
