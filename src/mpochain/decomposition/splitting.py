"""Kronecker factorisation of a matrix into a large factor and small ones, split off one by one.

``W = A (x) B_k (x) .. (x) B_1``; before each split, the rows and columns of the remaining left factor are reordered.
TQCompressor (arXiv 2401.16367) uses two factors of ``1 x 2`` for embeddings, and one factor with several terms for
linear layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpochain.arrays import (
    Array,
    asarray,
    cast,
    detached,
    in_range,
    promoted,
    require_finite,
    require_matrix,
    times_power_of_two,
    to_numpy,
)
from mpochain.decomposition.kronecker import KroneckerBlocks
from mpochain.decomposition.permutation import permuted_kronecker
from mpochain.decomposition.scaling import scaled_to_first
from mpochain.errors import SpecError
from mpochain.linalg import named
from mpochain.spec import ChainSpec

__all__ = ["KroneckerFactors", "split_off", "split_spec"]

_Order = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class KroneckerFactors:
    """A chain of a large core and small ones that approximates a matrix with its rows and columns reordered.

    Attributes:
        rows: order of the rows; the chain approximates ``matrix[rows][:, columns]``.
        columns: order of the columns.
        cores: ``(r_left, out, in, r_right)``, the large core first. The entries of the other cores have mean square 1,
            so that the entries of the large core are on the scale of the matrix and one learning rate suits all.
        spec: spec of the chain.
        relative_error: relative error in the Frobenius norm.
    """

    rows: _Order
    columns: _Order
    cores: tuple[Array, ...]
    spec: ChainSpec
    relative_error: float


def split_spec(shape: tuple[int, int], factors: Sequence[tuple[int, int]], terms: int) -> ChainSpec:
    """The spec of the chain that :func:`split_off` returns for a matrix ``(out, in)``.

    Args:
        shape: shape of the matrix.
        factors: ``(out, in)`` of each small factor; the first is split off first and becomes the last site.
        terms: number of terms of the sum, which is the bond of the chain; clipped to the attainable bond.

    Raises:
        SpecError: no factors, factors that do not divide the matrix, or several terms with several factors.

    Example:
        >>> print(split_spec((3072, 768), [(4, 2)], terms=4))
        3072x768 (768,4)|(384,2) bonds (4), 1,179,680 parameters
    """
    if not factors:
        raise SpecError("got no factors to split off; give one or more, such as (4, 2)")
    if isinstance(terms, bool) or not isinstance(terms, int) or terms < 1:
        raise SpecError(f"terms must be a positive integer, got {terms!r}")
    if len(factors) > 1 and terms > 1:
        raise SpecError(f"a sum of {terms} terms allows one factor, got {len(factors)}; give terms=1 for several")
    out, in_ = shape
    for m, n in factors:
        if m < 1 or n < 1 or out % m or in_ % n:
            raise SpecError(
                f"a factor of {m}x{n} does not divide the remaining {out}x{in_} of the {shape[0]}x{shape[1]} matrix; "
                "choose factors whose sizes divide it"
            )
        out, in_ = out // m, in_ // n
    small = list(reversed(factors))
    return ChainSpec((out, *(m for m, _ in small)), (in_, *(n for _, n in small)), terms)


def split_off(
    matrix: Array,
    factors: Sequence[tuple[int, int]],
    terms: int = 1,
    *,
    permuted: bool = True,
    seconds: float | None = None,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda *_: None,
    name: str = "matrix",
) -> KroneckerFactors:
    """Split small Kronecker factors off a matrix, each after a search for the best order of rows and columns.

    Args:
        matrix: ``W (out, in)``, any float type.
        factors: see :func:`split_spec`.
        terms: see :func:`split_spec`.
        permuted: whether to search for an order, see :func:`mpochain.decomposition.permuted_kronecker`.
        seconds: time limit of all searches together; None for no limit.
        seed: see :func:`mpochain.decomposition.permuted_kronecker`.
        progress: see :func:`mpochain.decomposition.permuted_kronecker`; starts from 0 for each factor.
        name: name of the matrix in errors.

    Raises:
        SpecError: see :func:`split_spec`.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.

    Example:
        >>> table = np.kron(np.random.default_rng(0).normal(size=(50, 6)), [[1.0, -2.0, 0.5, -1.0]])
        >>> factors = split_off(table, [(1, 2), (1, 2)], permuted=False)
        >>> [core.shape for core in factors.cores], factors.relative_error < 1e-12
        ([(1, 50, 6, 1), (1, 1, 2, 1), (1, 1, 2, 1)], True)
    """
    require_matrix(matrix, name)
    spec = split_spec((int(matrix.shape[0]), int(matrix.shape[1])), factors, terms)
    weight64 = cast(promoted(detached(matrix), name), "float64")
    require_finite(weight64, name)
    left, exponent = in_range(np.ascontiguousarray(to_numpy(weight64)))
    rows, columns = (np.arange(size) for size in left.shape)
    deadline = None if seconds is None else time.monotonic() + seconds
    small: list[NDArray[np.float64]] = []
    A = left
    lost, unit, total = 0.0, 1.0, float(np.linalg.norm(left)) ** 2
    for number, (m, n) in enumerate(factors):
        out, in_ = left.shape
        step = ChainSpec((out // m, m), (in_ // n, n), terms)
        if permuted:
            # An equal share of the remaining time, but more than 0, so that the sum in the given order is computed.
            limit = None
            if deadline is not None:
                limit = max((deadline - time.monotonic()) / (len(factors) - number), 1e-3)
            search = permuted_kronecker(left, step, seconds=limit, seed=seed, progress=progress, name=name)
            step_rows, step_columns, error = search.rows, search.columns, search.relative_error
            A, B = (np.asarray(core) for core in search.cores)
        else:
            problem = KroneckerBlocks(left, step)
            step_rows, step_columns = np.arange(out), np.arange(in_)
            with named(name):
                A, B = problem.factors(step_rows, step_columns)
                blocks = problem.blocks(step_rows, step_columns)
                error = problem.error(blocks, problem.span(blocks))
        A, B = scaled_to_first([A, B])
        # The residual of a split is orthogonal to all later approximations of its factors, so squared errors add up.
        lost += unit * error**2 * float(np.linalg.norm(left)) ** 2
        unit *= float(np.linalg.norm(B)) ** 2
        rows = rows.reshape(out, -1)[step_rows].ravel() if small else step_rows
        columns = columns.reshape(in_, -1)[step_columns].ravel() if small else step_columns
        small.insert(0, B)
        left = A[0, :, :, 0]
    cores = tuple(asarray(core, weight64) for core in (times_power_of_two(A, exponent), *small))
    return KroneckerFactors(rows, columns, cores, spec, math.sqrt(lost / total) if total else 0.0)
