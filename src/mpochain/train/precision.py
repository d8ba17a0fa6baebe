"""Float32 master weights of a model in bfloat16 or float16, for the time of a training run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mpochain.train.config import FinetuneConfig

__all__ = ["HALF_DTYPES", "in_float32", "with_products_of"]

# Element types in which small updates round to zero, so that they are trained as float32.
HALF_DTYPES = (torch.bfloat16, torch.float16)


def with_products_of(model: nn.Module, config: FinetuneConfig) -> FinetuneConfig:
    """The configuration with matrix products in the model's own type: bfloat16 for a model in bfloat16.

    Products of a float16 model are float32, because gradients in float16 overflow.

    Example:
        >>> model = nn.Linear(2, 2, dtype=torch.bfloat16)
        >>> with_products_of(model, FinetuneConfig()).autocast
        'bfloat16'
    """
    if config.autocast is None and any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()):
        return config.model_copy(update={"autocast": "bfloat16"})
    return config


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Hold all bfloat16 and float16 tensors of a model as float32; they are rounded to their type again on exit.

    Parameters stay the same objects, so that tied parameters stay tied.

    Example:
        >>> model = nn.Linear(2, 2, dtype=torch.bfloat16)
        >>> with in_float32(model):
        ...     print(model.weight.dtype)
        torch.float32
        >>> model.weight.dtype
        torch.bfloat16
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    halves = [(tensor, tensor.dtype) for tensor in tensors if tensor.dtype in HALF_DTYPES]
    try:
        for tensor, _ in halves:
            _convert(tensor, torch.float32)
        yield
    finally:
        for tensor, dtype in halves:
            _convert(tensor, dtype)


def _convert(tensor: Tensor, dtype: torch.dtype) -> None:
    tensor.grad = None  # it would have another type
    tensor.data = tensor.data.to(dtype)
