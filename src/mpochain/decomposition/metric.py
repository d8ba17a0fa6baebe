"""Metric of a weighted fit: weights of outputs and inputs, and their partial traces over the sites of a chain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mpochain.arrays import Array, asarray, cast, namespace, zeros
from mpochain.decomposition.projector import Projector
from mpochain.linalg import eigh

__all__ = ["Metric", "Root", "dot", "partial_traces"]

# Smallest eigenvalue of a partial trace, relative to its largest; smaller ones are raised to it.
_FLOOR = 1e-6


class Metric:
    """Weights ``G`` of the outputs and ``H`` of the inputs, each divided by its mean diagonal; None is the identity.

    Attributes:
        unit: product of both mean diagonals; multiply squared norms under this metric by it to undo the scaling.
        outputs: ``G (out, out)`` in the precision of the metric.
        inputs: ``H (in, in)`` in the precision of the metric.
    """

    def __init__(self, outputs: Array | None, inputs: Array | None, precision: str) -> None:
        self.unit = 1.0
        self._weights64: list[Array | None] = []
        for weights in (outputs, inputs):
            mean = float(namespace(weights).linalg.trace(weights)) / weights.shape[0] if weights is not None else 1.0
            mean = mean if mean > 0 else 1.0
            self.unit *= mean
            self._weights64.append(None if weights is None else weights / mean)
        self.outputs, self.inputs = (
            None if weights is None else cast(weights, precision) for weights in self._weights64
        )
        self._projector: Projector | None = None

    def apply(self, matrix: Array) -> Array:
        """``G M H``."""
        matrix = matrix if self.inputs is None else matrix @ self.inputs
        return matrix if self.outputs is None else self.outputs @ matrix

    def square(self, matrix: Array) -> float:
        """``tr(G M H M^T)``, the squared norm under the metric."""
        return max(dot([matrix], [self.apply(matrix)]), 0.0)

    def low_rank(self, matrix: Array, rank: int) -> tuple[Array, Array]:
        """Factors ``(out, rank)`` and ``(rank, in)`` of the best approximation of rank ``rank``, in float64."""
        matrix64 = cast(matrix, "float64")
        outputs, inputs = self._weights64
        transposed = namespace(matrix64).matrix_transpose(matrix64)
        outputs_are_fewer = matrix64.shape[0] <= matrix64.shape[1]
        if self._projector is None:
            self._projector = Projector(outputs if outputs_are_fewer else inputs)
        if outputs_are_fewer:
            moments = (matrix64 if inputs is None else matrix64 @ inputs) @ transposed
        else:
            moments = transposed @ (matrix64 if outputs is None else outputs @ matrix64)
        return self._projector(matrix64, moments).factors(rank)


class Root:
    """Powers of a symmetric, positive semidefinite matrix, whose small eigenvalues are raised to a floor."""

    def __init__(self, symmetric: Array) -> None:
        xp = namespace(symmetric)
        values, self._vectors = eigh((symmetric + xp.matrix_transpose(symmetric)) / 2)
        largest = float(xp.max(values))
        least = xp.full_like(values, largest * _FLOOR if largest > 0 else 1.0)
        self._values = xp.where(values > least, values, least)
        self._powers: dict[float, Array] = {}

    def power(self, exponent: float) -> Array:
        """The matrix raised to an exponent; computed once per exponent."""
        if exponent not in self._powers:
            xp = namespace(self._values)
            self._powers[exponent] = (self._vectors * self._values**exponent) @ xp.matrix_transpose(self._vectors)
        return self._powers[exponent]


def partial_traces(weights: Array | None, dims: tuple[int, ...], like: Array) -> list[Root]:
    """Partial traces of the weights, one ``(dim, dim)`` per site; padding has weight 0.

    They are scaled such that their Kronecker product has the same trace as the weights.
    """
    if weights is None:
        return [Root(cast(asarray(np.eye(dim), like), like)) for dim in dims]
    xp = namespace(weights)
    missing = math.prod(dims) - weights.shape[0]
    if missing:
        weights = xp.concat([weights, zeros((missing, weights.shape[1]), weights)], axis=0)
        weights = xp.concat([weights, zeros((weights.shape[0], missing), weights)], axis=1)
    trace = float(xp.linalg.trace(weights))
    roots = []
    for k, dim in enumerate(dims):
        before, after = math.prod(dims[:k]), math.prod(dims[k + 1 :])
        blocks = xp.reshape(weights, (before, dim, after, before, dim, after))
        blocks = xp.reshape(xp.permute_dims(blocks, (1, 4, 0, 2, 3, 5)), (dim, dim, before * after, before * after))
        traced = xp.sum(xp.linalg.diagonal(blocks), axis=-1)
        # Each partial trace has the full trace, so all but the first are divided by it.
        roots.append(Root(traced / trace if k and trace > 0 else traced))
    return roots


def dot(a: Sequence[Array], b: Sequence[Array]) -> float:
    """Inner product of two sequences of arrays of the same shapes."""
    return math.fsum(float(namespace(x).sum(x * y)) for x, y in zip(a, b, strict=True))
