"""Search per layer between low rank and low rank plus a chain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpochain import shapes
from mpochain.chain import MPOChain
from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.methods.interpolative import Interpolative, index_bytes, smallest_low_rank
from mpochain.compression.methods.method import Method
from mpochain.compression.statistics.damping import DAMPING
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import errors_between, weights_of
from mpochain.compression.target import Target
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

# Sums are fitted at these shares of the matrix's parameters; the ratio of their errors to those of low rank is
# interpolated to estimate the errors of all sums. The second number is the spacing of the shares offered.
_FITTED_SHARES, _STEP = (0.4, 0.7), 0.02

# Smallest and largest share offered.
_SMALLEST, _LARGEST = 0.2, 0.8

# The chain takes this share of a sum's parameters, scaled by (1 - share of the sum), and at least the second number.
_CHAIN_SHARE, _LEAST_CHAIN_SHARE = 0.35, 0.1

# Largest skew of the chain; iterations of the fits that estimate errors and of the fits that build layers.
# docs/decisions/0028 has the measurements.
_SKEW = 8
_ESTIMATE, _FINAL = 12, 30


class Search(Method):
    """Interpolative low rank; for layers with more inputs than outputs also its sum with a skewed chain.

    Both are weighted by inputs and gradients, with errors in nats per token, and compete in one list of choices. If a
    sum turns out no better than low rank of the same cost, low rank is built instead.

    Example:
        >>> import mpochain as mpo, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8))
        >>> report = mpo.compress(model, 0.6, calibration=[torch.randn(100, 32)], method=Search())
        >>> report.parameters_after <= 0.6 * report.parameters_before
        True
    """

    needs = "gradients"

    def needs_inputs(self, shape: tuple[int, int]) -> bool:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return _skew(shape) > 1

    def smallest(self, target: Target) -> int:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return smallest_low_rank(target)

    def prepare(self, target: Target, moments: Moments | None) -> Choices:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        low_rank = Interpolative().prepare(target, moments)
        sums = _sums(target)
        if moments is None or not sums:
            return low_rank
        costs = Costs.joined(*(_cost(target, rank, chain) for rank, chain in sums))

        def errors() -> tuple[NDArray[np.float64], float | None]:
            shares = costs.elements / target.parameters
            fitted = sorted({int(np.abs(shares - share).argmin()) for share in _FITTED_SHARES})
            of_low_rank = _interpolated(low_rank, costs)
            ratios = [
                _fitted(target, moments, *sums[choice], _ESTIMATE).errors[-1] / 2 / max(of_low_rank[choice], 1e-300)
                for choice in fitted
            ]
            ratio = np.exp(np.interp(costs.elements, costs.elements[fitted], np.log(np.maximum(ratios, 1e-12))))
            return of_low_rank * ratio, low_rank.zero_error

        def build(choice: int) -> Built | None:
            rank, chain = sums[choice]
            fit = _fitted(target, moments, rank, chain, _FINAL)
            equal = int(np.searchsorted(low_rank.costs.elements[:-1], costs.elements[choice], side="right")) - 1
            if equal >= 0 and low_rank.errors[equal] <= fit.errors[-1] / 2:
                return low_rank.build(equal)
            (left, right), cores = fit.terms
            short = interpolative(left.reshape(-1, rank).double(), right.reshape(rank, -1).double())
            rows, coefficients = (part.to(target.weight.dtype) for part in (short.rows, short.coefficients))
            layer = SumLinear(
                [
                    InterpolativeLinear.from_interpolation(
                        Interpolation(rows, coefficients, short.permutation), target.bias
                    ),
                    MPOLinear.from_chains(MPOChain(cores, chain)),
                ]
            )
            return Built(layer, errors_between(target.weight, moments, layer.weight))

        return low_rank | Choices.of(target, costs, errors, build)


def _skew(shape: tuple[int, int]) -> int:
    """Largest skew up to ``_SKEW`` that divides both sizes of a layer with more inputs than outputs; 1 for others."""
    out, in_ = shape
    if out >= in_:
        return 1
    return max(skew for skew in range(1, _SKEW + 1) if out % skew == 0 and in_ % skew == 0)


def _sums(target: Target) -> list[tuple[int, ChainSpec]]:
    """Rank and chain spec of every sum offered, ordered by cost."""
    out, in_ = target.shape
    skew = _skew((out, in_))
    if skew == 1:
        return []
    per_bond = shapes.skewed(out, in_, skew, 1).parameters
    index_elements = -(-index_bytes(target) // target.element_size)
    sums: dict[int, tuple[int, ChainSpec]] = {}
    for share in np.arange(_SMALLEST, _LARGEST + _STEP / 2, _STEP):
        room = int(share * target.parameters) - index_elements
        chain_share = max(_CHAIN_SHARE * (1 - share), _LEAST_CHAIN_SHARE)
        chain = shapes.skewed(out, in_, skew, max(int(chain_share * room / per_bond), 1))
        rank = interpolative_rank(out, in_, max(room - chain.parameters, 0))
        if 1 <= rank < min(out, in_):
            sums[int(_cost(target, rank, chain).elements[0])] = rank, chain
    return [sums[cost] for cost in sorted(sums)]


def _cost(target: Target, rank: int, chain: ChainSpec) -> Costs:
    low_rank = interpolative_parameters(*target.shape, rank)
    return Costs.of(target, [low_rank + chain.parameters], [low_rank + chain.macs()], index_bytes=index_bytes(target))


def _interpolated(low_rank: Choices, costs: Costs) -> NDArray[np.float64]:
    """Errors of low rank at the costs of the sums, interpolated between ranks."""
    logarithms = np.log(np.maximum(low_rank.errors[:-1], 1e-300))
    return np.exp(np.interp(costs.elements, low_rank.costs.elements[:-1], logarithms))


def _fitted(target: Target, moments: Moments, rank: int, chain: ChainSpec, iterations: int) -> Calibration:
    inputs, outputs = weights_of(moments, damping=DAMPING)
    low_rank = shapes.low_rank(*target.shape, rank)
    # Rounding errors of float32 are far below the error of the approximation.
    return calibrated(
        target.weight,
        [low_rank, chain],
        inputs,
        outputs,
        iterations=iterations,
        ridge=0.0,
        precision="float32",
        name=target.name,
    )
