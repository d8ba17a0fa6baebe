"""Low rank in interpolative form, weighted by inputs and by the gradient of outputs."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mpochain.compression.allocation import Curve
from mpochain.compression.fit import errors_of, fit
from mpochain.compression.methods.method import Built
from mpochain.compression.moments import Moments
from mpochain.decomposition import WeightedLowRank, interpolative, interpolative_parameters, weighted_low_rank
from mpochain.nn import InterpolativeLinear

__all__ = ["Interpolative"]

# Of the mean diagonal of the gradients' moments, added to each: how far few tokens are trusted to say which outputs do
# not matter at all.
_DAMPING = 0.1


class Interpolative:
    """The weighted optimum of every rank, with ``rank (out + in - rank)`` parameters; errors are in nats per token."""

    needs = "gradients"
    uniform = False

    def curve(self, weight: Tensor, moments: Moments | None) -> Curve:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        out, in_ = weight.shape
        errors = _fit(weight, moments).errors / 2  # of second order, so half of the square
        # Rank 0 would be no layer; the full rank is the matrix itself.
        ranks = np.arange(1, len(errors) - 1)
        costs = [interpolative_parameters(out, in_, int(rank)) + _order_cost(weight) for rank in ranks]
        smaller = np.asarray(costs, dtype=np.int64) < weight.numel()
        return Curve(np.append(np.asarray(costs)[smaller], weight.numel()), np.append(errors[ranks][smaller], 0.0))

    def build(self, weight: Tensor, bias: Tensor | None, moments: Moments | None, choice: int) -> Built | None:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        out, in_ = weight.shape
        if interpolative_parameters(out, in_, choice + 1) + _order_cost(weight) >= weight.numel():
            return None
        found = _fit(weight, moments)
        left, right = found.factors(choice + 1)
        short = interpolative(left, right)
        rows, coefficients = (each.to(weight.dtype) for each in (short.rows, short.coefficients))
        layer = InterpolativeLinear.from_interpolation(type(short)(rows, coefficients, short.place), bias)
        return Built(layer, errors_of(weight, moments, found, choice + 1) if moments is not None else None)


def _order_cost(weight: Tensor) -> int:
    """The order of the outputs, four bytes each, in elements of the weight."""
    return -(-4 * int(weight.shape[0]) // weight.element_size())


def _fit(weight: Tensor, moments: Moments | None) -> WeightedLowRank:
    return weighted_low_rank(weight) if moments is None else fit(weight, moments, damping=_DAMPING)
