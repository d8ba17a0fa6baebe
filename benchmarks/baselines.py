"""Autograd baselines for training a chain, which use the parameters of an existing layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mpochain import MPOChain, MPOLinear


class Rebuild(nn.Module):
    """Rebuilds the dense weight under autograd and multiplies by it, as most libraries do."""

    def __init__(self, layer: MPOLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight)


class PlainChain(nn.Module):
    """Contracts the cores one after another under autograd, without tiling."""

    def __init__(self, layer: MPOLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return MPOChain(self.layer.cores[0], self.layer.spec).apply(x)
