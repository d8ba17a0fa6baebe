"""What a method of compression is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from mpochain.compression.allocation import Curve
from mpochain.compression.moments import Moments

__all__ = ["Method"]


class Method(Protocol):
    """Makes one layer smaller.

    Attributes:
        needs: the moments it cannot do without: "nothing", "inputs" or "gradients".
        uniform: whether every layer keeps the same share of its parameters, as the method was published, or the budget
            goes where it takes away the most error.
    """

    needs: str
    uniform: bool

    def curve(self, weight: Tensor, moments: Moments | None) -> Curve:
        """What the layer can become: parameters and error of each choice, the last of them the dense layer itself."""
        ...

    def build(self, weight: Tensor, bias: Tensor | None, moments: Moments | None, choice: int) -> nn.Module | None:
        """The layer of one choice of the curve; None for the dense layer as it is."""
        ...
