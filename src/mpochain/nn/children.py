"""Linear modules inside compressed layers, which quantisers and adapters may replace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from mpochain.distributed import is_shard

__all__ = ["WithoutRows", "evaluated", "float_tensor_of", "is_plain", "linear_without_values", "matrix_of"]

# Types of weights with which F.linear computes what nn.Linear computes; quantisers use types of their own.
_PLAIN = (nn.Parameter, Tensor)


class WithoutRows(nn.Module):
    """A matrix without rows, which nobody multiplies with.

    It is no ``nn.Linear``, since quantisers would try to find the scales of its weight, and fail.
    """

    weight: nn.Parameter
    in_features: int
    out_features: int


def linear_without_values(
    in_features: int, out_features: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Linear | WithoutRows:
    """A ``torch.nn.Linear`` without bias whose weight has no values yet; :class:`WithoutRows` for no output features.

    The constructor of ``nn.Linear`` would draw random numbers, which changes what is drawn next.

    Example:
        >>> linear_without_values(3, 2, "meta")
        Linear(in_features=3, out_features=2, bias=False)
    """
    kind: type[nn.Linear] | type[WithoutRows] = nn.Linear if out_features else WithoutRows
    linear = kind.__new__(kind)
    nn.Module.__init__(linear)
    linear.in_features, linear.out_features = in_features, out_features
    linear.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
    linear.register_parameter("bias", None)
    return linear


# Modules that multiply with their weight.
_MULTIPLY = (nn.Linear, WithoutRows)


def is_plain(linear: Any) -> TypeGuard[nn.Linear]:
    """Whether a module multiplies with its weight and does nothing else, so that it need not be called.

    A replaced or quantised weight, an adapter, a parametrisation, a hook, a bias or a forward of the instance makes it
    more than that. A shard counts as the weight that FSDP gathers of it.

    Example:
        >>> linear = nn.Linear(3, 2, bias=False)
        >>> is_plain(linear), is_plain(nn.utils.parametrizations.weight_norm(linear)), is_plain(nn.Identity())
        (True, False, False)
    """
    if type(linear) not in _MULTIPLY:
        return False
    parameters = linear._parameters
    return (
        (type(parameters.get("weight")) in _PLAIN or is_shard(parameters["weight"]))
        and parameters["bias"] is None
        and not (
            linear._forward_hooks
            or linear._forward_pre_hooks
            or linear._backward_hooks
            or linear._backward_pre_hooks
            or "forward" in linear.__dict__
        )
    )


def matrix_of(linear: nn.Module, in_features: int, like: Tensor) -> Tensor:
    """The matrix ``(out, in)`` that a module multiplies with, found by a call with the identity, differentiable.

    Args:
        linear: a module that computes a linear map without bias, whatever its type; it is called in evaluation mode,
            since adapters drop inputs at random while they are trained.
        in_features: size of its input rows.
        like: a tensor of the element type and on the device of its inputs.

    Example:
        >>> linear = nn.Linear(3, 2, bias=False)
        >>> torch.equal(matrix_of(linear, 3, linear.weight), linear.weight)
        True
    """
    with evaluated(linear):
        matrix: Tensor = linear(torch.eye(in_features, dtype=like.dtype, device=like.device))
    return matrix.T


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Context in which a module and all inside it are in evaluation mode.

    Example:
        >>> dropout = nn.Dropout()
        >>> with evaluated(dropout):
        ...     print(dropout.training)
        False
        >>> dropout.training
        True
    """
    training = {part: part.training for part in module.modules()}
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part, mode in training.items():
            part.training = mode


def float_tensor_of(layer: nn.Module) -> Tensor:
    """A tensor of the element type and on the device of a layer's inputs, as far as its own tensors tell.

    Quantisers may leave nothing but integers, whose products are of any type; then it has torch's default type.

    Example:
        >>> float_tensor_of(nn.Linear(3, 2, dtype=torch.float64)).dtype
        torch.float64
    """
    tensors = [*layer.parameters(), *layer.buffers()]
    default = torch.empty(0, device=tensors[0].device if tensors else None)
    return next((tensor for tensor in tensors if tensor.is_floating_point()), default)
