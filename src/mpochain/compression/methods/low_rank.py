"""Two factors by SVD: plain, and with truncation-aware whitening as SVD-LLM has it."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mpochain import shapes
from mpochain.chain import MPOChain
from mpochain.compression.allocation import Curve
from mpochain.compression.methods.method import Built, Method
from mpochain.compression.statistics.low_rank import errors_of, fit
from mpochain.compression.statistics.moments import Moments
from mpochain.decomposition import WeightedLowRank, weighted_low_rank
from mpochain.nn import MPOLinear

__all__ = ["LowRank"]


class LowRank(Method):
    """Factors ``(out, r)`` and ``(r, in)``, every layer at the same share of its parameters.

    Args:
        weighted: by the inputs, which is truncation-aware whitening (SVD-LLM, arXiv 2403.07378).
    """

    uniform = True

    def __init__(self, *, weighted: bool) -> None:
        self.needs = "inputs" if weighted else "nothing"
        self.embeddings = not weighted
        self._weighted = weighted

    def curve(self, weight: Tensor, moments: Moments | None) -> Curve:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        out, in_ = weight.shape
        errors = self._fit(weight, moments).errors
        ranks = np.arange(1, len(errors))
        # Beyond this rank two factors are no smaller than the matrix.
        useful = ranks * (out + in_) < out * in_
        costs = np.append(ranks[useful] * (out + in_), out * in_)
        return Curve(costs, np.append(errors[1:][useful], 0.0), float(errors[0]))

    def build(self, weight: Tensor, bias: Tensor | None, moments: Moments | None, choice: int) -> Built | None:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        out, in_ = weight.shape
        rank = choice + 1
        if rank * (out + in_) >= out * in_:
            return None
        found = self._fit(weight, moments)
        left, right = (each.to(weight.dtype) for each in found.factors(rank))
        spec = shapes.low_rank(out, in_, rank)
        chain = MPOChain((left.reshape(spec.core_shapes[0]), right.reshape(spec.core_shapes[1])), spec)
        errors = errors_of(weight, moments, found, rank) if moments is not None else None
        return Built(MPOLinear.from_chains(chain, bias), errors)

    def _fit(self, weight: Tensor, moments: Moments | None) -> WeightedLowRank:
        if moments is None or not self._weighted:
            return weighted_low_rank(weight)
        return fit(weight, moments, damping=None)
