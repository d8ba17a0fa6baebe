"""Integer factorisations: which dims a chain of a given matrix may have.

Dims decide the cost of a chain more than the contraction order does. For two sites a right-to-left sweep needs
``χ i_1 o_2 (i_2 + o_1)`` multiply-adds per row and ``χ (o_1 i_1 + o_2 i_2)`` parameters, so *skewed* dims (large
``o_1`` and ``i_2``, small ``i_1`` and ``o_2``) keep the parameters and cut the work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

from mpochain.errors import SpecError
from mpochain.spec import ChainSpec

__all__ = ["balanced", "candidate_specs", "default_dims", "factorizations", "low_rank", "padded", "skewed"]


def _check(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(f"{name} must be a positive integer, got {value!r}")
    return value


@lru_cache(maxsize=4096)
def _divisors(n: int) -> tuple[int, ...]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return tuple(small + [n // d for d in reversed(small) if d * d != n])


def factorizations(n: int, sites: int) -> Iterator[tuple[int, ...]]:
    """Every way to write ``n`` as an ascending product of ``sites`` positive integers (1 included).

    Example:
        >>> list(factorizations(12, 2))
        [(1, 12), (2, 6), (3, 4)]
    """
    _check(n, "n"), _check(sites, "sites")

    def ascending(rest: int, left: int, least: int) -> Iterator[tuple[int, ...]]:
        if left == 1:
            if rest >= least:
                yield (rest,)
            return
        for d in _divisors(rest):
            if d >= least and d**left <= rest:
                for tail in ascending(rest // d, left - 1, d):
                    yield (d, *tail)

    return ascending(n, sites, 1)


def _spread(dims: Sequence[int]) -> float:
    """How far dims are from equal: the sum of squared deviations of their logarithms."""
    mean = sum(map(math.log, dims)) / len(dims)
    return sum((math.log(d) - mean) ** 2 for d in dims)


@lru_cache(maxsize=4096)
def balanced(n: int, sites: int = 2) -> tuple[int, ...]:
    """The ascending factorisation of ``n`` into ``sites`` dims that are as equal as its divisors allow.

    Example:
        >>> balanced(768, 3), balanced(65, 2), balanced(13, 2)
        ((8, 8, 12), (5, 13), (1, 13))
    """
    return min(factorizations(n, sites), key=_spread)


def padded(n: int, sites: int = 2, *, max_ratio: float = 2.0) -> tuple[int, ...]:
    """The balanced dims of the smallest number at or above ``n`` whose dims differ by at most ``max_ratio``.

    For sizes that factor badly, such as prime vocabularies. Pass the true size as ``out_features`` or ``in_features``
    of :class:`~mpochain.ChainSpec`.

    Args:
        n: the number of features to hold.
        sites: the number of dims.
        max_ratio: largest allowed quotient of the largest and the smallest dim, at least 2 so that a solution near
            ``n`` always exists.

    Example:
        >>> padded(50257, 2), 206 * 244, padded(768, 2)
        ((206, 244), 50264, (24, 32))
    """
    if not max_ratio >= 2.0:
        raise SpecError(f"max_ratio must be at least 2, got {max_ratio}")
    size = _check(n, "n")
    while True:
        dims = balanced(size, sites)
        if dims[-1] <= max_ratio * dims[0]:
            return dims
        size += 1


def default_dims(n: int, sites: int = 2) -> tuple[int, ...]:
    """Balanced dims where ``n`` has useful ones, padded dims where it has not, as a prime.

    A dim of 1 or a quotient over 16 makes a chain that is hardly smaller than the matrix.

    Example:
        >>> default_dims(768), default_dims(65), default_dims(97)
        ((24, 32), (5, 13), (7, 14))
    """
    dims = balanced(n, sites)
    return dims if sites == 1 or (dims[0] > 1 and dims[-1] <= 16 * dims[0]) else padded(n, sites)


def low_rank(out_features: int, in_features: int, rank: int | None = None) -> ChainSpec:
    """The chain that is a plain rank-``rank`` product ``(out, rank) @ (rank, in)``: dims ``(out, 1) | (1, in)``.

    Example:
        >>> low_rank(64, 32, 4).core_shapes
        ((1, 64, 1, 4), (4, 1, 32, 1))
    """
    return ChainSpec((_check(out_features, "out_features"), 1), (1, _check(in_features, "in_features")), rank)


def skewed(out_features: int, in_features: int, skew: int, max_bond: int | None = None) -> ChainSpec:
    """The two-site chain with dims ``(out / skew, skew) | (skew, in / skew)``.

    ``skew=1`` is low rank; larger skews have more parameters per bond and fewer multiply-adds than balanced dims.

    Raises:
        SpecError: ``skew`` does not divide both sizes.

    Example:
        >>> print(skewed(4096, 4096, 8, max_bond=16))
        4096x4096 (512,8)|(8,512) bonds (16), 131,072 parameters
    """
    for name, size in (("out_features", out_features), ("in_features", in_features)):
        if _check(size, name) % _check(skew, "skew"):
            raise SpecError(f"skew {skew} does not divide {name}={size}; its divisors are {_divisors(size)}")
    return ChainSpec((out_features // skew, skew), (skew, in_features // skew), max_bond)


def _largest_bond(spec: ChainSpec, parameters: int | None, macs: int | None) -> ChainSpec | None:
    """``spec`` with the largest uniform bond within the budget, or None if even bond 1 exceeds it."""

    def fits(candidate: ChainSpec) -> bool:
        return (parameters is None or candidate.parameters <= parameters) and (macs is None or candidate.macs() <= macs)

    low, high = 0, spec.with_bonds().max_bond
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(spec.with_bonds(middle)) else (low, middle - 1)
    return spec.with_bonds(low) if low else None


def candidate_specs(
    out_features: int,
    in_features: int,
    *,
    parameters: int | None = None,
    macs: int | None = None,
    sites: Sequence[int] = (2, 3),
) -> list[ChainSpec]:
    """Specs of a matrix under a budget: low rank, every common skew, and balanced chains, each at its largest bond.

    Args:
        out_features: rows of the matrix.
        in_features: columns of the matrix.
        parameters: most elements all cores together may have.
        macs: most multiply-adds per row a plain sweep may need.
        sites: numbers of sites of the balanced chains; a size that does not factor well is padded.

    Returns:
        Distinct specs within the budget, fewest multiply-adds per row first.

    Raises:
        SpecError: no budget given, or one that is not positive.

    Example:
        >>> for spec in candidate_specs(64, 64, parameters=1024)[:3]:
        ...     print(spec, spec.macs())
        64x64 (64,1)|(1,64) bonds (8), 1,024 parameters 1024
        64x64 (32,2)|(2,32) bonds (8), 1,024 parameters 2048
        64x64 (16,4)|(4,16) bonds (8), 1,024 parameters 4096
    """
    if parameters is None and macs is None:
        raise SpecError("candidate_specs needs a budget: parameters=, macs= or both")
    for name, budget in (("parameters", parameters), ("macs", macs)):
        if budget is not None:
            _check(budget, name)
    shapes = [
        skewed(out_features, in_features, skew)
        for skew in _divisors(math.gcd(out_features, in_features))
        if skew**2 <= min(out_features, in_features)
    ]
    for n in sites:
        # Descending against ascending dims is the cheaper of the balanced orders; padding only where it is needed.
        out_dims, in_dims = (default_dims(size, n) for size in (out_features, in_features))
        shapes.append(ChainSpec(out_dims[::-1], in_dims, out_features=out_features, in_features=in_features))
    found = {bounded: None for shape in shapes if (bounded := _largest_bond(shape, parameters, macs))}
    return sorted(found, key=lambda spec: (spec.macs(), spec.sites))
