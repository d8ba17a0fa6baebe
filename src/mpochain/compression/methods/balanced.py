"""Balanced two-site chains by TT-SVD, without data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mpochain import shapes
from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.methods.method import Method
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.target import Target
from mpochain.decomposition import interleave
from mpochain.factorization import decompose
from mpochain.linalg import svdvals
from mpochain.nn import MPOLinear
from mpochain.spec import ChainSpec

__all__ = ["Balanced"]


class Balanced(Method):
    """TT-SVD of the weight with balanced dims; every layer keeps the same share of its parameters.

    Source: TT-SVD, Oseledets, SIAM J. Sci. Comput. 33, 2295 (2011).

    Example:
        >>> import mpochain as mpo
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64))
        >>> report = mpo.compress(model, 0.5, method=Balanced())
        >>> report.method, model[0].specs[0].bonds
        ('tt_svd', (16,))
    """

    name = "tt_svd"
    uniform = True
    embeddings = True

    def smallest(self, target: Target) -> int:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return min(_spec(target.weight, 1).parameters, target.parameters) * target.element_size

    def prepare(self, target: Target, moments: Moments | None) -> Choices:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`; errors are squared norms of the weight."""
        largest = _spec(target.weight)
        one = _spec(target.weight, 1)
        bonds = np.arange(1, max(largest.bonds, default=1) + 1)
        bonds = bonds[bonds * one.parameters < target.parameters]

        def errors() -> tuple[NDArray[np.float64], float]:
            unfolding = interleave(target.weight.double(), largest)
            unfolding = unfolding.reshape(largest.out_dims[0] * largest.in_dims[0], -1)
            squares = np.asarray(svdvals(unfolding).cpu()) ** 2
            lost = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
            return lost[bonds], float(lost[0])

        def build(choice: int) -> Built:
            spec = _spec(target.weight, choice + 1)
            return Built(MPOLinear.from_chains(decompose(target.weight, spec), target.bias))

        costs = Costs.of(target, bonds * one.parameters, bonds * target.chain_macs(one))
        return Choices.of(target, costs, errors, build, unit="squared norm of the weight")


def _spec(weight: Tensor, bond: int | None = None) -> ChainSpec:
    out, in_ = weight.shape
    out_dims, in_dims = (shapes.default_dims(size, 2) for size in (out, in_))
    return ChainSpec(out_dims, in_dims, bond, out_features=out, in_features=in_)
