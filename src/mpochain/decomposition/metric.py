"""What inputs and outputs are weighed by, whole and as Kronecker products over the sites of a chain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mpochain.arrays import Array, asarray, cast, namespace, zeros
from mpochain.decomposition.weighted import Projector

__all__ = ["Metric", "Root", "dot", "partial_traces"]

# Of the largest eigenvalue of a partial trace: smaller ones are taken for this, in the preconditioner and the start.
_FLOOR = 1e-6


class Metric:
    """``G`` and ``H``, each over its mean diagonal; None is the identity.

    Attributes:
        unit: what squares have to be multiplied by for that.
    """

    def __init__(self, outputs: Array | None, inputs: Array | None, precision: str) -> None:
        self.unit = 1.0
        self._wide: list[Array | None] = []
        for given in (outputs, inputs):
            mean = float(namespace(given).linalg.trace(given)) / given.shape[0] if given is not None else 1.0
            mean = mean if mean > 0 else 1.0
            self.unit *= mean
            self._wide.append(None if given is None else given / mean)
        self.outputs, self.inputs = (None if each is None else cast(each, precision) for each in self._wide)
        self._projector: Projector | None = None

    def apply(self, matrix: Array) -> Array:
        """``G M H``."""
        matrix = matrix if self.inputs is None else matrix @ self.inputs
        return matrix if self.outputs is None else self.outputs @ matrix

    def square(self, matrix: Array) -> float:
        """``tr(G M H M^T)``."""
        return max(dot([matrix], [self.apply(matrix)]), 0.0)

    def low_rank(self, matrix: Array, rank: int) -> tuple[Array, Array]:
        """The factors of the best matrix of a rank, in float64."""
        wide = cast(matrix, "float64")
        outputs, inputs = self._wide
        transposed = namespace(wide).matrix_transpose(wide)
        is_wide = wide.shape[0] <= wide.shape[1]
        if self._projector is None:
            self._projector = Projector(outputs if is_wide else inputs)
        if is_wide:
            moments = (wide if inputs is None else wide @ inputs) @ transposed
        else:
            moments = transposed @ (wide if outputs is None else outputs @ wide)
        return self._projector(wide, moments).factors(rank)


class Root:
    """A symmetric, positive semidefinite matrix by its eigenvectors, small eigenvalues raised to a floor."""

    def __init__(self, symmetric: Array) -> None:
        xp = namespace(symmetric)
        values, self._vectors = xp.linalg.eigh((symmetric + xp.matrix_transpose(symmetric)) / 2)
        largest = float(xp.max(values))
        least = xp.full_like(values, largest * _FLOOR if largest > 0 else 1.0)
        self._values = xp.where(values > least, values, least)
        self._powers: dict[float, Array] = {}

    def power(self, exponent: float) -> Array:
        """The matrix to a power, made once."""
        if exponent not in self._powers:
            xp = namespace(self._values)
            self._powers[exponent] = (self._vectors * self._values**exponent) @ xp.matrix_transpose(self._vectors)
        return self._powers[exponent]


def partial_traces(weights: Array | None, dims: tuple[int, ...], like: Array) -> list[Root]:
    """Of each site, so that their Kronecker product has the trace of the whole; rows of padding weigh nothing."""
    if weights is None:
        return [Root(cast(asarray(np.eye(dim), like), like)) for dim in dims]
    xp = namespace(weights)
    missing = math.prod(dims) - weights.shape[0]
    if missing:
        weights = xp.concat([weights, zeros((missing, weights.shape[1]), weights)], axis=0)
        weights = xp.concat([weights, zeros((weights.shape[0], missing), weights)], axis=1)
    trace = float(xp.linalg.trace(weights))
    found = []
    for k, dim in enumerate(dims):
        before, after = math.prod(dims[:k]), math.prod(dims[k + 1 :])
        blocks = xp.reshape(weights, (before, dim, after, before, dim, after))
        blocks = xp.reshape(xp.permute_dims(blocks, (1, 4, 0, 2, 3, 5)), (dim, dim, before * after, before * after))
        traced = xp.sum(xp.linalg.diagonal(blocks), axis=-1)
        # A product of n of them would have the trace n times, so all but the first are shares of it.
        found.append(Root(traced / trace if k and trace > 0 else traced))
    return found


def dot(one: Sequence[Array], other: Sequence[Array]) -> float:
    """Sum of the products of all entries."""
    return math.fsum(float(namespace(a).sum(a * b)) for a, b in zip(one, other, strict=True))
