"""Decomposition algorithms by name, and the automatic choice of the fastest within a tolerance.

The choice is made per bond, relative to the error of an exact SVD. Its limits were measured on flat spectra, where the
randomised range finder is least accurate: with a basis of at most a twentieth of the smaller side its error was 0.2 to
0.9 % above the optimum (256 to 3072 rows). Gram eigenvectors stay within 0.1 % by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal

from mpochain.arrays import Array
from mpochain.decomposition.gram import split as gram_split
from mpochain.decomposition.randomized import DEFAULT_OVERSAMPLING
from mpochain.decomposition.randomized import split as randomized_split
from mpochain.decomposition.sweep import Decomposition, Split, sweep
from mpochain.decomposition.tt_svd import split as exact_split
from mpochain.errors import ArgumentError
from mpochain.spec import ChainSpec

__all__ = ["SPLITS", "Algorithm", "automatic", "decomposed_by", "fastest_algorithm"]

Algorithm = Literal["auto", "gram", "tt_svd", "randomized"]
"""Name of an algorithm in :data:`SPLITS`."""

_GRAM_TOLERANCE = 1e-3
_RANDOMIZED_TOLERANCE = 1e-2
_SMALL_BASIS = 20


def fastest_algorithm(shape: tuple[int, ...], max_rank: int, allowance: float | None, *, tolerance: float) -> Algorithm:
    """Name of the fastest algorithm whose error is at most ``1 + tolerance`` times that of an exact SVD.

    Args:
        shape: shape of the unfolding.
        max_rank: largest bond.
        allowance: squared norm that may be discarded to reduce the bond; ``None`` for a fixed bond. If the bond depends
            on the data, no randomised algorithm is chosen.
        tolerance: largest relative excess of the error over that of an exact SVD.

    Example:
        >>> [fastest_algorithm((256, 256), 4, None, tolerance=t) for t in (0.0, 0.001, 0.01)]
        ['tt_svd', 'gram', 'randomized']
    """
    small_basis = _SMALL_BASIS * (max_rank + DEFAULT_OVERSAMPLING) <= min(shape)
    if tolerance >= _RANDOMIZED_TOLERANCE and allowance is None and small_basis:
        return "randomized"
    return "gram" if tolerance >= _GRAM_TOLERANCE else "tt_svd"


def _automatic_split(
    matrix: Array, max_rank: int, allowance: float | None, *, tolerance: float, seed: int
) -> tuple[Array, Array, float]:
    algorithm = fastest_algorithm(tuple(matrix.shape), max_rank, allowance, tolerance=tolerance)
    return SPLITS[algorithm](tolerance, seed)(matrix, max_rank, allowance)


SPLITS: Mapping[Algorithm, Callable[[float, int], Split]] = {
    "auto": lambda tolerance, seed: partial(_automatic_split, tolerance=tolerance, seed=seed),
    "gram": lambda *_: gram_split,
    "tt_svd": lambda *_: exact_split,
    "randomized": lambda _, seed: partial(randomized_split, seed=seed),
}
"""For each algorithm, a function ``(tolerance, seed) -> split``; only ``"auto"`` uses the tolerance."""


def decomposed_by(
    algorithm: Algorithm,
    matrix: Array,
    spec: ChainSpec,
    *,
    cutoff: float | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
    name: str = "matrix",
) -> Decomposition:
    """Decompose a matrix by an algorithm of :data:`SPLITS`.

    Args:
        algorithm: name of the algorithm.
        matrix: ``(out_features, in_features)``, any float type; bfloat16 and float16 are computed in float32.
        spec: dims, and the largest bonds to use.
        cutoff: allowed relative Frobenius error of the whole chain, in ``[0, 1)``.
        tolerance: see :func:`automatic`; the other algorithms do not use it.
        seed: seed of the randomised splits, a non-negative integer.
        name: name of the matrix in errors.

    Raises:
        ArgumentError: an unknown algorithm, or a tolerance or seed out of range.
        SpecError: the dims do not fit, or the cutoff is out of range.
        DTypeError: the matrix is not of a float type.
        NonFiniteError: it holds NaN or infinity.

    Example:
        >>> import numpy as np
        >>> decomposed_by("gram", np.eye(4), ChainSpec((2, 2), (2, 2))).relative_error
        0.0
    """
    if algorithm not in SPLITS:
        *names, last = map(repr, SPLITS)
        raise ArgumentError(f"method must be {', '.join(names)} or {last}, got {algorithm!r}")
    split = SPLITS[algorithm](check_tolerance(tolerance), _check_seed(seed))
    return sweep(matrix, spec, split, cutoff=cutoff, name=name)


def automatic(
    matrix: Array,
    spec: ChainSpec,
    *,
    cutoff: float | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
    name: str = "matrix",
) -> Decomposition:
    """Decompose a matrix by the fastest algorithm whose error is at most ``1 + tolerance`` times that of exact SVDs.

    Args:
        matrix: ``(out_features, in_features)``, any float type; bfloat16 and float16 are computed in float32.
        spec: dims, and the largest bonds to use.
        cutoff: allowed relative Frobenius error of the whole chain, in ``[0, 1)``; with a cutoff, no randomised
            algorithm is used.
        tolerance: below 0.001, exact SVDs; from 0.001, Gram eigenvectors; from 0.01, the randomised range finder where
            bonds are small compared with the matrix.
        seed: seed of the randomised splits.
        name: name of the matrix in errors.

    Raises:
        ArgumentError: the tolerance or the seed is out of range.
        SpecError: the dims do not fit, or the cutoff is out of range.
        DTypeError: the matrix is not of a float type.
        NonFiniteError: it holds NaN or infinity.

    Example:
        >>> import numpy as np
        >>> W = np.random.default_rng(0).normal(size=(256, 256))
        >>> spec = ChainSpec((16, 16), (16, 16), max_bond=4)
        >>> exact, quick = (automatic(W, spec, tolerance=t).relative_error for t in (0, 0.01))
        >>> exact <= quick <= 1.01 * exact
        True
    """
    return decomposed_by("auto", matrix, spec, cutoff=cutoff, tolerance=tolerance, seed=seed, name=name)


def check_tolerance(tolerance: Any) -> float:
    """The tolerance as a float.

    Raises:
        ArgumentError: not a number of at least 0.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not 0.0 <= float(tolerance) < float("inf"):
        raise ArgumentError(
            f"tolerance must be a number of at least 0, got {tolerance!r}; it is the largest relative excess of the "
            "error over that of exact SVDs"
        )
    return float(tolerance)


def _check_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, Integral) or int(seed) < 0:
        raise ArgumentError(f"seed must be a non-negative integer, got {seed!r}")
    return int(seed)
