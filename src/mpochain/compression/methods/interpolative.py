"""Low rank in interpolative form, weighted by inputs and by the gradient of outputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mpochain.compression.allocation import Curve
from mpochain.compression.methods.method import Built, Method
from mpochain.compression.statistics.low_rank import errors_of, fit
from mpochain.compression.statistics.moments import Moments
from mpochain.decomposition import Interpolation, WeightedLowRank, interpolative, weighted_low_rank
from mpochain.nn import InterpolativeLinear

__all__ = ["DAMPING", "Interpolative", "order_cost"]

# Of the mean diagonal of the gradients' moments, added to each: how far few tokens are trusted to say which outputs do
# not matter at all.
DAMPING = 0.1


class Interpolative(Method):
    """The weighted optimum of every rank, with ``rank (out + in - rank)`` parameters; errors are in nats per token."""

    needs = "gradients"
    uniform = False

    def curve(self, weight: Tensor, moments: Moments | None) -> Curve:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        costs = self.costs(weight)
        errors = _fit(weight, moments).errors / 2  # of second order, so half of the square
        return Curve(np.append(costs, weight.numel()), np.append(errors[1 : len(costs) + 1], 0.0), float(errors[0]))

    def costs(self, weight: Tensor) -> NDArray[np.int64]:
        """Of the ranks from 1 on that are smaller than the matrix; rank 0 would be no layer."""
        out, in_ = weight.shape
        ranks = np.arange(1, min(out, in_), dtype=np.int64)
        costs = ranks * (out + in_ - ranks) + order_cost(weight)
        return costs[costs < weight.numel()]

    def build(self, weight: Tensor, bias: Tensor | None, moments: Moments | None, choice: int) -> Built | None:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        if choice >= len(self.costs(weight)):
            return None
        found = _fit(weight, moments)
        left, right = found.factors(choice + 1)
        short = interpolative(left, right)
        rows, coefficients = (each.to(weight.dtype) for each in (short.rows, short.coefficients))
        layer = InterpolativeLinear.from_interpolation(Interpolation(rows, coefficients, short.place), bias)
        return Built(layer, errors_of(weight, moments, found, choice + 1) if moments is not None else None)


def order_cost(weight: Tensor) -> int:
    """The order of the outputs, four bytes each, in elements of the weight."""
    return -(-4 * int(weight.shape[0]) // weight.element_size())


def _fit(weight: Tensor, moments: Moments | None) -> WeightedLowRank:
    return weighted_low_rank(weight) if moments is None else fit(weight, moments, damping=DAMPING)
