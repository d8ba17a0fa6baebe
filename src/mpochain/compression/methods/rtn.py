"""Rounding of dense weights to the nearest values in few bits, without data."""

from __future__ import annotations

from mpochain.compression.methods.uniform_bits import UniformBits
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.target import Target
from mpochain.quantization import Quantized, Scheme, nearest

__all__ = ["Rtn"]


class Rtn(UniformBits):
    """Dense weights rounded to the nearest values of each group's grid; the same number of bits in every layer.

    So are the tables of embeddings that ``targets`` names. The budget picks the most bits that fit; with ``bits=``
    there is no budget.

    Example:
        >>> import mpochain as mpo
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64))
        >>> mpo.compress(model, None, method=Rtn(bits=4)).bits_per_weight
        4.375
        >>> mpo.compress(nn.Sequential(nn.Linear(64, 64)), "4 bits", method="rtn").bits_per_weight  # of 3-bit codes
        3.375
    """

    name = "rtn"
    embeddings = True

    def rounded(self, target: Target, moments: Moments | None, scheme: Scheme) -> Quantized:  # noqa: ARG002  # of the protocol
        """The weight in codes."""
        return nearest(target.weight, scheme, name=target.name)
