"""Balanced two-site chains by TT-SVD, without data."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mpochain import shapes
from mpochain.compression.allocation import Curve
from mpochain.compression.methods.method import Built, Method
from mpochain.compression.statistics.moments import Moments
from mpochain.decomposition import interleave
from mpochain.factorization import decompose
from mpochain.nn import MPOLinear
from mpochain.spec import ChainSpec

__all__ = ["Balanced"]


class Balanced(Method):
    """TT-SVD of the weight with balanced dims, every layer at the same share of its parameters."""

    needs = "nothing"
    uniform = True
    embeddings = True

    def curve(self, weight: Tensor, moments: Moments | None) -> Curve:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`."""
        spec = _spec(weight)
        unfolding = interleave(weight.detach().double(), spec).reshape(spec.out_dims[0] * spec.in_dims[0], -1)
        squares = np.asarray(unfolding.svd().S) ** 2
        errors = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
        bonds = np.arange(1, len(errors))
        costs = bonds * (sum(unfolding.shape))
        useful = costs < weight.numel()
        return Curve(np.append(costs[useful], weight.numel()), np.append(errors[1:][useful], 0.0), float(errors[0]))

    def build(self, weight: Tensor, bias: Tensor | None, moments: Moments | None, choice: int) -> Built | None:  # noqa: ARG002
        """See :class:`~mpochain.compression.methods.method.Method`."""
        spec = _spec(weight, choice + 1)
        if spec.parameters >= weight.numel():
            return None
        return Built(MPOLinear.from_chains(decompose(weight.detach(), spec), bias), None)


def _spec(weight: Tensor, bond: int | None = None) -> ChainSpec:
    out, in_ = weight.shape
    out_dims, in_dims = (shapes.default_dims(size, 2) for size in (out, in_))
    return ChainSpec(out_dims, in_dims, bond, out_features=out, in_features=in_)
