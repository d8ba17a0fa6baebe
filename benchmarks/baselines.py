"""Two baselines that train a chain by autograd alone, with the parameters of an existing layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mpochain import MPOChain, MPOLinear


class Rebuild(nn.Module):
    """The dense weight, rebuilt under autograd, then one product, as most libraries do."""

    def __init__(self, layer: MPOLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight)


class PlainChain(nn.Module):
    """The cores one after another by autograd, untiled."""

    def __init__(self, layer: MPOLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return MPOChain(self.layer.cores[0], self.layer.spec) @ x
