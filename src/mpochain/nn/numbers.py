"""Stored size of a compressed weight, and its work per input row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["Numbers", "stored_bytes"]


@dataclass(frozen=True)
class Numbers:
    """Stored size of a layer's weight, and its work per input row. The bias is not counted.

    Attributes:
        parameters: number of elements stored for the weight, without index buffers.
        bytes: size of all tensors stored for the weight, with index buffers and other integers.
        macs: multiply-adds per input row.
    """

    parameters: int
    bytes: int
    macs: int


def stored_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes; of a quantised one, such as torchao's, those of its codes, scales and zero points.

    Example:
        >>> import torch
        >>> stored_bytes(torch.zeros(3, 2, dtype=torch.float16))
        12
    """
    if is_traceable_wrapper_subclass(wrapper := cast("Any", tensor)):
        names, _ = wrapper.__tensor_flatten__()
        return sum(stored_bytes(getattr(wrapper, name)) for name in names)
    return tensor.numel() * tensor.element_size()
