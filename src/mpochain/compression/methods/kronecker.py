"""Sums of Kronecker products with a small right factor, as TQCompressor has them, without data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mpochain.compression.allocation import Curve
from mpochain.compression.methods.method import Built, Method
from mpochain.compression.moments import Moments
from mpochain.decomposition import interleave, permuted_kronecker
from mpochain.factorization import decompose
from mpochain.nn import MPOLinear, PermutedLinear
from mpochain.spec import ChainSpec

__all__ = ["Kronecker"]

# The search for an order ends after so many seconds of one layer.
_SECONDS = 60.0

# The right factors are of 4 along the longer side and 2 along the other, and 2 x 2 of a square matrix.
_LONG, _SHORT = 4, 2


class Kronecker(Method):
    """``sum_r A_r (x) B_r``, every layer at the same share of its parameters; the number of terms sets it.

    Source: TQCompressor, arXiv 2401.16367, whose factors for GPT-2 these are. A layer whose sizes they do not divide
    stays dense.

    Args:
        permuted: whether rows and columns are put into a better order first.
    """

    needs = "nothing"
    uniform = True

    def __init__(self, *, permuted: bool) -> None:
        self._permuted = permuted

    def curve(self, weight: Tensor, moments: Moments | None) -> Curve:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`; errors are those of the given order."""
        costs = self._costs(weight)
        if not len(costs):
            return Curve(np.array([weight.numel()]), np.zeros(1), float(weight.double().square().sum()))
        spec = _spec(weight)
        blocks = interleave(weight.detach().double(), spec).reshape(spec.out_dims[0] * spec.in_dims[0], -1)
        squares = np.maximum(np.linalg.eigvalsh(np.asarray((blocks.T @ blocks).cpu()))[::-1], 0.0)
        errors = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
        return Curve(np.append(costs, weight.numel()), np.append(errors[1 : len(costs) + 1], 0.0), float(errors[0]))

    def build(self, weight: Tensor, bias: Tensor | None, moments: Moments | None, choice: int) -> Built | None:  # noqa: ARG002
        """See :class:`~mpochain.compression.methods.method.Method`."""
        if choice >= len(self._costs(weight)):
            return None
        spec = _spec(weight, choice + 1)
        if not self._permuted:
            return Built(MPOLinear.from_chains(decompose(weight.detach(), spec, method="tt_svd"), bias), None)
        found = permuted_kronecker(weight, spec, seconds=_SECONDS, name="the weight")
        layer = PermutedLinear.from_search(found, spec, bias)
        return Built(layer.to(weight.dtype), None)

    def _costs(self, weight: Tensor) -> NDArray[np.int64]:
        """Of one term and more, while they are fewer than the matrix has entries; none if the factors do not fit."""
        out, in_ = weight.shape
        spec = _spec(weight)
        if spec.shape != spec.padded_shape:
            return np.empty(0, dtype=np.int64)
        # Where each row and column is found: four bytes each.
        orders = -(-4 * (out + in_) // weight.element_size()) if self._permuted else 0
        terms = np.arange(1, spec.max_bond, dtype=np.int64)
        costs = terms * (spec.core_shapes[0][1] * spec.core_shapes[0][2] + spec.out_dims[1] * spec.in_dims[1]) + orders
        return costs[costs < weight.numel()]


def _spec(weight: Tensor, terms: int | None = None) -> ChainSpec:
    out, in_ = (int(size) for size in weight.shape)
    right = (_SHORT, _SHORT) if out == in_ else (_LONG, _SHORT) if out > in_ else (_SHORT, _LONG)
    dims = (-(-out // right[0]), right[0]), (-(-in_ // right[1]), right[1])
    return ChainSpec(*dims, terms, out_features=out, in_features=in_)
