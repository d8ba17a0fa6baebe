"""Absorption of feature permutations into a layer's weight.

An order ``p`` of features means that the new feature ``j`` is the old feature ``p[j]``. A dense layer absorbs any
order: its rows or columns are permuted. So does an interpolative one at its inputs; its outputs it looks up, unless the
order is the one in which they are computed. A chain cannot, so it becomes a layer that looks features up at each call,
unless it is permuted already and the two permutations cancel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpochain.errors import DTypeError
from mpochain.nn.attachments import alterations, hooks
from mpochain.nn.dense import dense_parameters
from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.layer import CompressedLayer
from mpochain.nn.linear import MPOLinear
from mpochain.nn.permuted import PermutedLinear

__all__ = [
    "can_reorder",
    "features_of",
    "has_order",
    "input_lookups",
    "output_lookups",
    "own_input_order",
    "own_output_order",
    "with_inputs",
    "with_outputs",
]


def can_reorder(layer: nn.Module) -> bool:
    """True if the layer computes only its linear map, so that its rows or columns can be permuted safely."""
    if any((*hooks(layer), *alterations(layer))):
        return False
    if isinstance(layer, CompressedLayer):
        return layer.can_reorder()
    try:
        dense_parameters(layer)
    except DTypeError:
        return False
    return "weight" in layer._parameters  # older parametrisations compute the weight from other parameters


def has_order(layer: nn.Module) -> bool:
    """True if the layer permutes its inputs or outputs at each call."""
    if isinstance(layer, InterpolativeLinear):
        return not layer.place.is_meta and not _is_identity(layer.place.cpu())
    return isinstance(layer, PermutedLinear)


def features_of(layer: Any) -> tuple[int, int]:
    """``(out_features, in_features)`` of a dense or compressed layer."""
    if hasattr(layer, "out_features"):
        return int(layer.out_features), int(layer.in_features)
    out, in_ = dense_parameters(layer)[0].shape
    return int(out), int(in_)


def own_output_order(layer: nn.Module) -> Tensor | None:
    """The output order that would make the layer's output look-up unnecessary; None if it has none."""
    if isinstance(layer, PermutedLinear | InterpolativeLinear) and layer.place is not None:
        return torch.argsort(layer.place.cpu())
    return None


def own_input_order(layer: nn.Module) -> Tensor | None:
    """The input order that would make the layer's input look-up unnecessary; None if it has none."""
    if isinstance(layer, PermutedLinear) and layer.columns is not None:
        return layer.columns.cpu().long()
    return None


def output_lookups(layer: nn.Module, order: Tensor) -> int:
    """Number of output look-ups per call, 0 or 1, once the layer's outputs are in ``order``."""
    if isinstance(layer, PermutedLinear | InterpolativeLinear):
        place = _identity(len(order)) if layer.place is None else layer.place.cpu().long()
        return int(not _is_identity(place[order]))
    return int(isinstance(layer, MPOLinear) and not _is_identity(order))


def input_lookups(layer: nn.Module, order: Tensor) -> int:
    """Number of input look-ups per call, 0 or 1, once the layer's inputs are in ``order``."""
    if isinstance(layer, PermutedLinear):
        columns = _identity(len(order)) if layer.columns is None else layer.columns.cpu().long()
        return int(not _is_identity(torch.argsort(order)[columns]))
    return int(isinstance(layer, MPOLinear) and not _is_identity(order))


def with_outputs(layer: Any, order: Tensor) -> nn.Module:
    """The layer with its outputs in ``order``; a layer without chains is changed in place."""
    if isinstance(layer, PermutedLinear | MPOLinear):
        inner, place, columns = _parts(layer)
        bias = None if layer.bias is None else layer.bias[order]
        place = order if place is None else place[order]
        return _permuted(layer, inner, place, columns, bias)
    if isinstance(layer, InterpolativeLinear):
        layer.place.copy_(layer.place[order])
    else:
        weight, _ = dense_parameters(layer)
        weight.copy_(weight[order].clone())
    if layer.bias is not None:
        layer.bias.copy_(layer.bias[order].clone())
    return layer


def with_inputs(layer: Any, order: Tensor) -> nn.Module:
    """The layer for inputs in ``order``; a layer without chains is changed in place."""
    if isinstance(layer, PermutedLinear | MPOLinear):
        inner, place, columns = _parts(layer)
        inverse = torch.argsort(order)
        return _permuted(layer, inner, place, inverse if columns is None else inverse[columns], layer.bias)
    if isinstance(layer, InterpolativeLinear):
        layer.permute_inputs(order)
    else:
        weight, _ = dense_parameters(layer)
        weight.copy_(weight[:, order].clone())
    return layer


def _parts(layer: PermutedLinear | MPOLinear) -> tuple[MPOLinear, Tensor | None, Tensor | None]:
    if isinstance(layer, MPOLinear):
        return layer, None, None
    place, columns = (None if buffer is None else buffer.cpu().long() for buffer in (layer.place, layer.columns))
    return layer.inner, place, columns


def _permuted(
    old: PermutedLinear | MPOLinear, inner: MPOLinear, place: Tensor | None, columns: Tensor | None, bias: Tensor | None
) -> nn.Module:
    """A layer with copies of the same cores; an ``MPOLinear`` if both orders are the identity."""
    place, columns = (None if order is None or _is_identity(order) else order for order in (place, columns))
    layer: MPOLinear | PermutedLinear
    if place is None and columns is None:
        layer = MPOLinear.from_chains(inner.chains, bias)
    else:
        rows = None if place is None else torch.argsort(place)
        plain = MPOLinear.from_chains(inner.chains)
        layer = PermutedLinear(plain, rows=rows, columns=columns, bias=bias).to(old.device)
    trainable = {name.rpartition(".")[2]: parameter.requires_grad for name, parameter in old.named_parameters()}
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(trainable[name.rpartition(".")[2]])
    return layer.set_execution(cache=old.cache).replacing(old).train(old.training)


def _is_identity(order: Tensor) -> bool:
    return bool((order == _identity(len(order))).all())


def _identity(size: int) -> Tensor:
    # Orders are compared on the CPU, whatever the default device is.
    return torch.arange(size, device="cpu")
