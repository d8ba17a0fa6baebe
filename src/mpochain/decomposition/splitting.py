"""Small Kronecker factors split off a matrix, one after the other.

``W = A (x) B_k (x) .. (x) B_1``, each factor in the best order of what is left to its left. The form that TQCompressor
(arXiv 2401.16367) has for embeddings, two factors of ``1 x 2``, and with one factor and more terms for linear layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpochain.arrays import Array, asarray, cast, detached, promoted, require_finite, require_matrix, to_numpy
from mpochain.decomposition.kronecker import KroneckerBlocks
from mpochain.decomposition.permutation import permuted_kronecker
from mpochain.errors import SpecError
from mpochain.spec import ChainSpec

__all__ = ["Split", "split_off", "split_spec"]

_Order = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """A chain of a large core and small ones, for an order of rows and columns.

    Attributes:
        rows: ``matrix[rows][:, columns]`` is what the chain stands for.
        columns: see ``rows``.
        cores: ``(r_left, out, in, r_right)``, the large one first. The entries of all others have mean square 1, so
            that those of the large one are of the matrix's size, and the steps of an optimiser that suit one suit both.
        spec: of the chain.
        relative_error: Frobenius norm of what the chain leaves out over that of the matrix.
    """

    rows: _Order
    columns: _Order
    cores: tuple[Array, ...]
    spec: ChainSpec
    relative_error: float


def split_spec(shape: tuple[int, int], factors: Sequence[tuple[int, int]], terms: int) -> ChainSpec:
    """The chain of a matrix ``(out, in)`` off which factors are split.

    Args:
        shape: of the matrix.
        factors: ``(out, in)`` of each, the first to be split off first, and so the last site.
        terms: of the sum; more than the matrix can have are clipped, which the bonds of the spec show.

    Raises:
        SpecError: no factors, some that do not divide the matrix, or several terms with several factors.

    Example:
        >>> print(split_spec((3072, 768), [(4, 2)], terms=4))
        3072x768 (768,4)|(384,2) bonds (4), 1,179,680 parameters
    """
    if not factors:
        raise SpecError("there is no factor to split off; give one or more, such as (4, 2)")
    if isinstance(terms, bool) or not isinstance(terms, int) or terms < 1:
        raise SpecError(f"terms must be a positive integer, got {terms!r}")
    if len(factors) > 1 and terms > 1:
        raise SpecError(f"a sum of {terms} terms has one factor, got {len(factors)}; several are split off one term")
    out, in_ = shape
    for m, n in factors:
        if m < 1 or n < 1 or out % m or in_ % n:
            raise SpecError(
                f"a factor of {m}x{n} does not divide what is left of a {shape[0]}x{shape[1]} matrix, {out}x{in_}"
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
) -> Split:
    """Split small Kronecker factors off a matrix, each in the best order that is found.

    Args:
        matrix: ``W (out, in)``, any float type.
        factors: see :func:`split_spec`.
        terms: see :func:`split_spec`.
        permuted: whether an order is searched for, see :func:`mpochain.decomposition.permuted_kronecker`.
        seconds: for the search of all orders; None for no limit.
        seed: see :func:`mpochain.decomposition.permuted_kronecker`.
        progress: see :func:`mpochain.decomposition.permuted_kronecker`; told anew of each factor.
        name: what to call the matrix in errors.

    Raises:
        SpecError: see :func:`split_spec`.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.

    Example:
        >>> table = np.kron(np.random.default_rng(0).normal(size=(50, 6)), [[1.0, -2.0, 0.5, -1.0]])
        >>> found = split_off(table, [(1, 2), (1, 2)], permuted=False)
        >>> [core.shape for core in found.cores], found.relative_error < 1e-12
        ([(1, 50, 6, 1), (1, 1, 2, 1), (1, 1, 2, 1)], True)
    """
    require_matrix(matrix, name)
    spec = split_spec((int(matrix.shape[0]), int(matrix.shape[1])), factors, terms)
    wide = cast(promoted(detached(matrix), name), "float64")
    require_finite(wide, name)
    left = np.ascontiguousarray(to_numpy(wide))
    rows, columns = (np.arange(size) for size in left.shape)
    deadline = None if seconds is None else time.monotonic() + seconds
    small: list[NDArray[np.float64]] = []
    A = left
    lost, unit, whole = 0.0, 1.0, float(np.linalg.norm(left)) ** 2
    for number, (m, n) in enumerate(factors):
        out, in_ = left.shape
        step = ChainSpec((out // m, m), (in_ // n, n), terms)
        if permuted:
            # An equal share of what is left of the time, and a moment at least, which gives the sum of the given order.
            rest = None
            if deadline is not None:
                rest = max((deadline - time.monotonic()) / (len(factors) - number), 1e-3)
            found = permuted_kronecker(left, step, seconds=rest, seed=seed, progress=progress, name=name)
            here, there, error = found.rows, found.columns, found.relative_error
            A, B = (np.asarray(core) for core in found.cores)
        else:
            blocks = KroneckerBlocks(left, step)
            here, there = np.arange(out), np.arange(in_)
            A, B = blocks.factors(here, there)
            split = blocks.blocks(here, there)
            error = blocks.error(split, blocks.span(split))
        size = float(np.sqrt(np.mean(B**2))) or 1.0
        A, B = A * size, B / size
        # What a factor leaves out is orthogonal to all that is made of it, so squares add up.
        lost += unit * error**2 * float(np.linalg.norm(left)) ** 2
        unit *= float(np.linalg.norm(B)) ** 2
        rows = rows.reshape(out, -1)[here].ravel() if small else here
        columns = columns.reshape(in_, -1)[there].ravel() if small else there
        small.insert(0, B)
        left = A[0, :, :, 0]
    cores = tuple(asarray(core, wide) for core in (A, *small))
    return Split(rows, columns, cores, spec, math.sqrt(lost / whole) if whole else 0.0)
