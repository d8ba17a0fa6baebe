"""Products of fused layers: one for all layers that are dense or of low rank, and one more for each of low rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from mpochain.nn import CompressedLayer

__all__ = ["Parts", "products_of"]


class _Product(nn.Module):
    """``x W^T + b`` by the matrix product that vLLM chooses for the machine."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._method: Any = UnquantizedLinearMethod()
        self._method.process_weights_after_loading(self)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self._method.apply(self, x, self.bias)
        return product


class _SharedProduct(nn.Module):
    """Layers of the same inputs: the rows of all as one product, and a left factor for each layer of low rank.

    Args:
        factors: ``(left, right, bias)`` of each layer; ``left`` is None where ``right`` is the dense weight.
    """

    def __init__(self, factors: Sequence[tuple[Tensor | None, Tensor, Tensor | None]]) -> None:
        super().__init__()
        self._sizes = [len(right) for _, right, _ in factors]
        dense = [bias if left is None else None for left, _, bias in factors]
        bias = None
        if any(part is not None for part in dense):
            zeros = [right.new_zeros(len(right)) for _, right, _ in factors]
            bias = torch.cat([zero if part is None else part for part, zero in zip(dense, zeros, strict=True)])
        self._rows = _Product(torch.cat([right for _, right, _ in factors]), bias)
        self._lefts = nn.ModuleList(
            nn.Identity() if left is None else _Product(left, bias) for left, _, bias in factors
        )

    def forward(self, x: Tensor) -> Tensor:
        states = self._rows(x)
        if len(self._sizes) == 1:
            output: Tensor = self._lefts[0](states)
            return output
        parts = states.split(self._sizes, dim=-1)
        return torch.cat([left(part) for left, part in zip(self._lefts, parts, strict=True)], dim=-1)


class Parts(nn.Module):
    """Layers of the same inputs whose outputs follow one another."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self._layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all layers, one after the other."""
        outputs = [layer(x) for layer in self._layers]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def products_of(layers: Sequence[nn.Module]) -> Parts:
    """The module that vLLM runs for layers that it fuses, all with their values.

    Layers of low rank become two factors, or their dense weight where that takes fewer multiply-adds than both.

    Args:
        layers: compressed layers and ``torch.nn.Linear``, in the order of their outputs.
    """
    factors = [_factors(layer) for layer in layers]
    known = [factor for factor in factors if factor is not None]
    if len(known) == len(layers):
        return Parts([_SharedProduct(known)])
    return Parts(
        [layer if factor is None else _SharedProduct([factor]) for layer, factor in zip(layers, factors, strict=True)]
    )


def _factors(layer: Any) -> tuple[Tensor | None, Tensor, Tensor | None] | None:
    if not isinstance(layer, CompressedLayer):
        return None, layer.weight, layer.bias
    factors = layer.factors()
    if factors is None:
        return None
    left, right = factors
    if len(right) * (layer.out_features + layer.in_features) >= layer.out_features * layer.in_features:
        return None, layer.weight, layer.bias
    return left, right, layer.bias
