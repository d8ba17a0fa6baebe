"""What a method of compression is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from mpochain.compression.allocation import Curve
from mpochain.compression.statistics.low_rank import Errors
from mpochain.compression.statistics.moments import Moments

__all__ = ["Built", "Method"]


@dataclass(frozen=True)
class Built:
    """A smaller layer, and what it leaves out on the calibration data; None without data."""

    layer: nn.Module
    errors: Errors | None


class Method(Protocol):
    """Makes one layer smaller.

    Attributes:
        needs: the moments it cannot do without: "nothing", "inputs" or "gradients".
        uniform: whether every layer keeps the same share of its parameters, as the method was published, or the budget
            goes where it takes away the most error.
        linear: whether it can be used for linear layers.
        embeddings: whether it can be used for the table of an embedding.
        settled: whether there is one choice for each layer, the first; it is not asked for a curve then.
    """

    needs: str
    uniform: bool
    linear: bool = True
    embeddings: bool = False
    settled: bool = False

    def needs_inputs(self, shape: tuple[int, int]) -> bool:  # noqa: ARG002  # of those that do
        """Whether a layer ``(out, in)`` needs the moments of its inputs where these are its larger side."""
        return False

    def curve(self, weight: Tensor, moments: Moments | None) -> Curve:
        """What the layer can become: parameters and error of each choice, the last of them the dense layer itself."""
        ...

    def build(self, weight: Tensor, bias: Tensor | None, moments: Moments | None, choice: int) -> Built | None:
        """The layer of one choice of the curve; None for the dense layer as it is."""
        ...
