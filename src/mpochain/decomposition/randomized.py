"""Randomised decomposition of a matrix into cores, by a range finder instead of full SVDs.

Source: N. Halko, P.-G. Martinsson, J. Tropp, "Finding Structure with Randomness", SIAM Review 53 (2011), algorithms
4.4 (subspace iteration) and 5.1.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from mpochain.arrays import Array, asarray, dtype_name, namespace, norm
from mpochain.decomposition.sweep import Decomposition, retained_rank, sweep
from mpochain.decomposition.tt_svd import split as exact_split
from mpochain.errors import ArgumentError
from mpochain.linalg import qr, svd
from mpochain.spec import ChainSpec

__all__ = ["DEFAULT_OVERSAMPLING", "DEFAULT_POWER_ITERATIONS", "randomized", "split"]

DEFAULT_OVERSAMPLING = 8
DEFAULT_POWER_ITERATIONS = 3


def _gaussian(like: Array, rows: int, columns: int, seed: int) -> Array:
    # Always drawn by NumPy, so that a seed gives the same result in every array library.
    draw = np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)
    return asarray(draw.astype(dtype_name(like)), like)


def _range(matrix: Array, width: int, power_iterations: int, seed: int) -> Array:
    """An orthonormal basis ``(m, width)`` close to the dominant column space of ``matrix (m, n)``."""
    xp = namespace(matrix)
    transposed = xp.matrix_transpose(matrix)
    q, _ = qr(matrix @ _gaussian(matrix, matrix.shape[1], width, seed))
    for _ in range(power_iterations):
        # The QR between the two products keeps small directions from being lost to rounding.
        z, _ = qr(transposed @ q)
        q, _ = qr(matrix @ z)
    return q


def split(
    matrix: Array,
    max_rank: int,
    tolerance: float | None,
    *,
    oversampling: int = DEFAULT_OVERSAMPLING,
    power_iterations: int = DEFAULT_POWER_ITERATIONS,
    seed: int = 0,
) -> tuple[Array, Array, float]:
    """Split one unfolding by a range finder; see :data:`mpochain.decomposition.sweep.Split`."""
    xp = namespace(matrix)
    smallest = min(matrix.shape)
    # Without a cutoff the rank is known; with a cutoff it is found by doubling.
    rank = max_rank if tolerance is None else min(16, max_rank)
    while True:
        width = rank + oversampling
        if 2 * width >= smallest:
            return exact_split(matrix, max_rank, tolerance)
        q = _range(matrix, width, power_iterations, seed)
        projected = xp.matrix_transpose(q) @ matrix
        u, s, _ = svd(projected)
        if tolerance is None:
            spare = None
            break
        missed = norm(matrix - q @ projected) ** 2
        if rank == max_rank or missed <= tolerance:
            spare = max(tolerance - missed, 0.0)
            break
        rank = min(2 * rank, max_rank)
    bond, _ = retained_rank(s, max_rank, spare)
    basis = q @ u[:, :bond]
    rest = xp.matrix_transpose(basis) @ matrix
    # Measured directly: the difference ||A||^2 - ||rest||^2 would cancel when little is discarded.
    return basis, rest, norm(matrix - basis @ rest) ** 2


def randomized(
    matrix: Array,
    spec: ChainSpec,
    *,
    cutoff: float | None = None,
    oversampling: int = DEFAULT_OVERSAMPLING,
    power_iterations: int = DEFAULT_POWER_ITERATIONS,
    seed: int = 0,
    name: str = "matrix",
) -> Decomposition:
    """Decompose a matrix by randomised range finding; the reported error is exact.

    Much faster than :func:`~mpochain.decomposition.tt_svd` if bonds are small compared with the matrix. Splits whose
    basis would have at least half as many columns as the smaller side use an exact SVD.

    Args:
        matrix: ``(out_features, in_features)``, any float type; bfloat16 and float16 are computed in float32.
        spec: dims, and the largest bonds to use.
        cutoff: allowed relative Frobenius error of the whole chain, in ``[0, 1)``.
        oversampling: extra columns of the random test matrix.
        power_iterations: multiplications by ``A A^T`` that sharpen the basis.
        seed: seed of the test matrix; the same seed gives the same chain in every array library, up to rounding.
        name: name of the matrix in errors.

    Raises:
        ArgumentError: oversampling, power_iterations or seed is not a non-negative integer.
        SpecError: the dims do not fit, or the cutoff is out of range.
        DTypeError: the matrix is not of a float type.
        NonFiniteError: it holds NaN or infinity.

    Example:
        >>> W = np.random.default_rng(0).normal(size=(144, 144))
        >>> spec = ChainSpec((12, 12), (12, 12), max_bond=20)
        >>> from mpochain.decomposition import tt_svd
        >>> exact = tt_svd(W, spec).relative_error
        >>> randomized(W, spec).relative_error < 1.01 * exact
        True
    """
    for label, value in (("oversampling", oversampling), ("power_iterations", power_iterations), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ArgumentError(f"{label} must be a non-negative integer, got {value!r}")
    seeded = partial(split, oversampling=oversampling, power_iterations=power_iterations, seed=seed)
    return sweep(matrix, spec, seeded, cutoff=cutoff, name=name)
