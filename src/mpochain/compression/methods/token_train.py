"""Embeddings whose rows are tensor trains, each on its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from mpochain.compression.allocation import Curve
from mpochain.compression.methods.method import Built, Method
from mpochain.compression.statistics.moments import Moments
from mpochain.nn.embeddings import TokenTrainEmbedding

__all__ = ["TokenTrain"]


class TokenTrain(Method):
    """Each row by a TT-SVD of its own, with the largest bond that the table's share of the parameters allows.

    Source: TensorGPT, arXiv 2307.00526.

    Args:
        sites: number of sites of the default dims, 3 if not given.
        dims: of the sites, instead of the default.

    Example:
        >>> import mpochain as mpo
        >>> model = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 4))
        >>> report = mpo.compress(model, 0.75, method=TokenTrain())
        >>> model[0].bonds
        (2, 2)
    """

    needs = "nothing"
    uniform = True
    linear = False
    embeddings = True

    def __init__(self, *, sites: int | None = None, dims: Sequence[int] | None = None) -> None:
        self._sites, self._dims = sites, dims

    def curve(self, weight: Tensor, moments: Moments | None) -> Curve:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`."""
        costs = [self._cost(weight, bond) for bond in range(1, self._choices(weight) + 1)]
        # What is left out is not known before the rows are decomposed; a budget of parameters does not ask.
        return Curve(np.array([*costs, weight.numel()]), np.zeros(len(costs) + 1))

    def build(self, weight: Tensor, bias: Tensor | None, moments: Moments | None, choice: int) -> Built | None:  # noqa: ARG002
        """See :class:`~mpochain.compression.methods.method.Method`."""
        if choice >= self._choices(weight):
            return None
        dense = nn.Embedding.from_pretrained(weight.detach())
        return Built(TokenTrainEmbedding.from_embedding(dense, choice + 1, sites=self._sites, dims=self._dims), None)

    def _choices(self, weight: Tensor) -> int:
        """The bonds from 1 on that make a row smaller."""
        bond = 0
        while self._cost(weight, bond + 1) < weight.numel():
            bond += 1
        return bond

    def _cost(self, weight: Tensor, bond: int) -> int:
        one = TokenTrainEmbedding(1, weight.shape[1], bond, sites=self._sites, dims=self._dims, device="meta")
        return weight.shape[0] * sum(core.numel() for core in one.cores)
