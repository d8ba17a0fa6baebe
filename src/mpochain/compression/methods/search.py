"""The better of low rank and low rank beside a chain, for each layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mpochain import shapes
from mpochain.chain import MPOChain
from mpochain.compression.allocation import Curve
from mpochain.compression.methods.interpolative import DAMPING, Interpolative, order_cost
from mpochain.compression.methods.method import Built, Method
from mpochain.compression.statistics.low_rank import errors_between, weights_of
from mpochain.compression.statistics.moments import Moments
from mpochain.decomposition import (
    Calibration,
    Interpolation,
    calibrated,
    interpolative,
    interpolative_parameters,
    interpolative_rank,
)
from mpochain.nn import InterpolativeLinear, MPOLinear, SumLinear
from mpochain.spec import ChainSpec

__all__ = ["Search"]

# Shares of the matrix's parameters at which sums are fitted to draw the curve, between which their advantage over low
# rank is interpolated, and the steps of the curve.
_FITTED, _STEP = (0.4, 0.7), 0.02

# The shares that are tried.
_LEAST, _MOST = 0.2, 0.8

# What the chain has of a sum's parameters: the more, the fewer they are, but at least so much.
_CHAIN, _LEAST_CHAIN = 0.35, 0.1

# The skew of the chain at most, and how long a sum is fitted: for the curve, and once it is chosen. docs/decisions.md
# has what was measured.
_SKEW = 8
_SHORT, _LONG = 12, 30


class Search(Method):
    """Interpolative low rank of every rank; for wide layers also the sum of one and a skewed two-site chain.

    Both are weighted by inputs and gradients, with errors in nats per token. A sum that turns out no better than low
    rank of the same cost is not taken.
    """

    needs = "gradients"
    uniform = False

    def __init__(self) -> None:
        self._low_rank = Interpolative()

    def needs_inputs(self, shape: tuple[int, int]) -> bool:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return _skew(shape) > 1

    def curve(self, weight: Tensor, moments: Moments | None) -> Curve:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        low = self._low_rank.curve(weight, moments)
        specs = _sums(weight)
        if moments is None or not specs:
            return low
        costs = np.array([_cost(weight, *each) for each in specs])
        fitted = sorted({int(np.abs(costs - share * weight.numel()).argmin()) for share in _FITTED})
        own = _at(low, costs)
        ratios = [_fitted(weight, moments, *specs[k], _SHORT).errors[-1] / 2 / max(own[k], 1e-300) for k in fitted]
        ratio = np.exp(np.interp(costs, costs[fitted], np.log(np.maximum(ratios, 1e-12))))
        return Curve(
            np.concatenate([low.costs[:-1], costs, low.costs[-1:]]),
            np.concatenate([low.errors[:-1], own * ratio, low.errors[-1:]]),
            low.whole,
        )

    def build(self, weight: Tensor, bias: Tensor | None, moments: Moments | None, choice: int) -> Built | None:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        low = self._low_rank.costs(weight)
        specs = _sums(weight) if moments is not None else []
        if choice < len(low) or choice >= len(low) + len(specs) or moments is None:
            return self._low_rank.build(weight, bias, moments, choice)
        rank, chain = specs[choice - len(low)]
        found = _fitted(weight, moments, rank, chain, _LONG)
        equal = int(np.searchsorted(low, _cost(weight, rank, chain), side="right")) - 1
        if equal >= 0 and self._low_rank.curve(weight, moments).errors[equal] <= found.errors[-1] / 2:
            return self._low_rank.build(weight, bias, moments, equal)
        (left, right), cores = found.terms
        short = interpolative(left.reshape(-1, rank).double(), right.reshape(rank, -1).double())
        rows, coefficients = (each.to(weight.dtype) for each in (short.rows, short.coefficients))
        layer = SumLinear(
            [
                InterpolativeLinear.from_interpolation(Interpolation(rows, coefficients, short.place), bias),
                MPOLinear.from_chains(MPOChain(cores, chain)),
            ]
        )
        return Built(layer, errors_between(weight, moments, layer.weight))


def _skew(shape: tuple[int, int]) -> int:
    """Of the chain beside low rank: the largest that fits, for layers with more inputs than outputs; 1 for none."""
    out, in_ = shape
    if out >= in_:
        return 1
    return max(skew for skew in range(1, _SKEW + 1) if out % skew == 0 and in_ % skew == 0)


def _sums(weight: Tensor) -> list[tuple[int, ChainSpec]]:
    """Rank and chain of every sum that is tried, by their cost."""
    out, in_ = (int(size) for size in weight.shape)
    skew = _skew((out, in_))
    if skew == 1:
        return []
    each = shapes.skewed(out, in_, skew, 1).parameters
    found: dict[int, tuple[int, ChainSpec]] = {}
    for share in np.arange(_LEAST, _MOST + _STEP / 2, _STEP):
        room = int(share * weight.numel()) - order_cost(weight)
        part = max(_CHAIN * (1 - share), _LEAST_CHAIN)
        chain = shapes.skewed(out, in_, skew, max(int(part * room / each), 1))
        rank = interpolative_rank(out, in_, max(room - chain.parameters, 0))
        if 1 <= rank < min(out, in_):
            found[_cost(weight, rank, chain)] = rank, chain
    return [found[cost] for cost in sorted(found)]


def _cost(weight: Tensor, rank: int, chain: ChainSpec) -> int:
    return interpolative_parameters(weight.shape[0], weight.shape[1], rank) + order_cost(weight) + chain.parameters


def _at(low: Curve, costs: NDArray[np.int64]) -> NDArray[np.float64]:
    """The errors of low rank at the costs of sums, interpolated: ranks do not have just these."""
    return np.exp(np.interp(costs, low.costs[:-1], np.log(np.maximum(low.errors[:-1], 1e-300))))


def _fitted(weight: Tensor, moments: Moments, rank: int, chain: ChainSpec, iterations: int) -> Calibration:
    inputs, outputs = weights_of(moments, damping=DAMPING)
    low = shapes.low_rank(weight.shape[0], weight.shape[1], rank)
    # What float32 does not see is far below what is left out.
    return calibrated(
        weight, [low, chain], inputs, outputs, iterations=iterations, ridge=0.0, precision="float32", name="the weight"
    )
