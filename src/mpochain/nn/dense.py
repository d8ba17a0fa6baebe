"""Weights of dense torch and Hugging Face layers, and dense layers built from weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpochain.architectures import DENSE_KINDS
from mpochain.errors import DTypeError
from mpochain.nn.attachments import alterations, extra_tensors
from mpochain.wording import kind_of

__all__ = [
    "dense_parameters",
    "dense_shape",
    "dense_table",
    "is_transposed",
    "linear_of",
    "require_plain",
    "weight_and_bias",
]

# Element types of weights that can be compressed.
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def dense_parameters(linear: nn.Module, name: str | None = None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a dense torch or Hugging Face layer, without copying.

    Args:
        linear: a ``torch.nn.Linear`` or Hugging Face ``Conv1D``.
        name: name of the layer in errors.

    Returns:
        ``W (out_features, in_features)``, a transposed view for ``Conv1D``, and the bias or None.

    Raises:
        DTypeError: another module, a subclass with its own ``forward``, or a weight that is no matrix of ordinary
            floats: quantised, sparse, complex, a subclass of tensors, lazy, or on the meta device.

    Example:
        >>> weight, bias = dense_parameters(nn.Linear(3, 2, bias=False))
        >>> weight.shape, bias
        (torch.Size([2, 3]), None)
    """
    label = f"{name}: " if name else ""
    layer: Any = linear
    kind = _kind_of(layer)
    if kind is None:
        raise DTypeError(f"{label}expected torch.nn.Linear or Hugging Face Conv1D, got {type(linear).__name__}")
    declared, transposed = kind
    if type(layer).forward is not declared.forward or type(layer).__call__ is not nn.Module.__call__:
        raise DTypeError(
            f"{label}{type(linear).__name__} has its own forward, which a chain of its weight would not reproduce; "
            "convert a plain nn.Linear, or decompose the weight with mpochain.decompose"
        )
    _require_numbers(layer.weight, label)
    return layer.weight.T if transposed else layer.weight, layer.bias


def dense_shape(layer: nn.Module) -> tuple[int, int] | None:
    """``(out_features, in_features)`` of a dense linear layer, without reading its weight; None for other modules.

    Example:
        >>> dense_shape(nn.Linear(3, 2)), dense_shape(nn.ReLU())
        ((2, 3), None)
    """
    kind = _kind_of(layer)
    weight = getattr(layer, "weight", None)
    lazy = isinstance(weight, nn.UninitializedParameter)
    if kind is None or lazy or not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    rows, columns = weight.shape
    return (columns, rows) if kind[1] else (rows, columns)


def is_transposed(layer: nn.Module) -> bool:
    """Whether a dense layer stores its weight as ``(in_features, out_features)``, as Hugging Face ``Conv1D`` does."""
    kind = _kind_of(layer)
    return kind is not None and kind[1]


def _kind_of(layer: nn.Module) -> tuple[Any, bool] | None:
    """The layer's class in :data:`mpochain.architectures.DENSE_KINDS`, and True if it stores ``W^T``."""
    # The most derived class first: a subclass with its own forward may be in the table itself.
    kinds = {(kind.module, kind.name): kind.transposed for kind in DENSE_KINDS}
    for declared in type(layer).__mro__:
        transposed = kinds.get((declared.__module__, declared.__qualname__))
        if transposed is not None:
            return declared, transposed
    return None


def dense_table(embedding: nn.Module, name: str | None = None) -> Tensor:
    """The table ``(num_embeddings, embedding_dim)`` of a plain embedding, without copying.

    Args:
        embedding: a ``torch.nn.Embedding``.
        name: name of the embedding in errors.

    Raises:
        DTypeError: another module, a subclass with its own ``forward``, an embedding with ``max_norm=``,
            ``scale_grad_by_freq=`` or ``sparse=``, or a table that is no matrix of ordinary floats, see
            :func:`dense_parameters`.

    Example:
        >>> dense_table(nn.Embedding(3, 2)).shape
        torch.Size([3, 2])
    """
    label = f"{name}: " if name else ""
    if not isinstance(embedding, nn.Embedding):
        raise DTypeError(f"{label}expected torch.nn.Embedding, got {type(embedding).__name__}")
    if type(embedding).forward is not nn.Embedding.forward:
        raise DTypeError(f"{label}{type(embedding).__name__} has its own forward, which a chain would not reproduce")
    if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
        raise DTypeError(f"{label}a chain has no max_norm=, scale_grad_by_freq= or sparse=; turn them off")
    _require_numbers(embedding.weight, label)
    return embedding.weight


def weight_and_bias(layer: nn.Module, name: str | None = None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer, or the table of an embedding and None, without copying.

    Raises:
        DTypeError: see :func:`dense_parameters` and :func:`dense_table`.

    Example:
        >>> weight_and_bias(nn.Embedding(3, 2))[0].shape
        torch.Size([3, 2])
    """
    return (dense_table(layer, name), None) if isinstance(layer, nn.Embedding) else dense_parameters(layer, name)


def require_plain(layer: nn.Module, name: str | None = None) -> None:
    """Refuse a layer that is more than its weight and bias, or whose weight or forward was altered.

    Raises:
        DTypeError: another module than :func:`weight_and_bias` reads; or one with parametrisations, a forward of the
            instance, extra state, or further parameters, buffers or submodules.

    Example:
        >>> require_plain(nn.Linear(3, 2))
    """
    weight_and_bias(layer, name)
    label = f"{name}: " if name else ""
    for words, remedy in alterations(layer):
        raise DTypeError(f"{label}the {type(layer).__name__} has {words}, which a replacement would lose; {remedy}")
    extra = extra_tensors(layer)
    if extra:
        raise DTypeError(
            f"{label}the {type(layer).__name__} holds {', '.join(extra)} besides its weight and bias, which a "
            "replacement would lose"
        )


def _require_numbers(weight: object, label: str) -> None:
    """Refuse a weight that is no matrix of ordinary floats, and say how it becomes one."""
    if isinstance(weight, nn.UninitializedParameter) or (isinstance(weight, Tensor) and weight.device.type == "meta"):
        raise DTypeError(f"{label}the weight has no values yet (lazy or on the meta device); materialise it first")
    if not isinstance(weight, Tensor):
        raise DTypeError(
            f"{label}expected a weight that is a tensor, got {type(weight).__name__}; dequantise the layer"
        )
    if type(weight) not in (Tensor, nn.Parameter):
        raise DTypeError(
            f"{label}the weight is {kind_of(weight)}, a subclass of torch.Tensor; dequantise or gather it "
            "into an ordinary tensor first"
        )
    if weight.layout != torch.strided:
        raise DTypeError(f"{label}the weight is sparse ({weight.layout}); make it dense with .to_dense() first")
    if weight.dtype not in _FLOATS:
        raise DTypeError(
            f"{label}the weight has element type {weight.dtype}, expected one of "
            f"{', '.join(str(dtype).removeprefix('torch.') for dtype in _FLOATS)}; dequantise or convert the model "
            "first, for example with model.to(torch.bfloat16)"
        )
    if weight.ndim != 2:
        raise DTypeError(
            f"{label}the weight has shape {tuple(weight.shape)}, expected a matrix; gather a weight that is split over "
            "processes first"
        )
    if not weight.numel():
        raise DTypeError(f"{label}the weight has shape {tuple(weight.shape)}, no entries, so nothing can be smaller")


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A ``torch.nn.Linear`` with copies of a weight ``(out_features, in_features)`` and a bias.

    Example:
        >>> linear_of(torch.ones(3, 2), None)
        Linear(in_features=2, out_features=3, bias=False)
    """
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().clone())
    return linear
