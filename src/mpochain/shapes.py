"""Dims of chains: integer factorisations of matrix sizes, and candidate specs within a budget.

The dims affect the cost of a chain more than the contraction order does. With two sites and bond ``χ``, a right-to-left
sweep needs ``χ i_1 o_2 (i_2 + o_1)`` multiply-adds per row and ``χ (o_1 i_1 + o_2 i_2)`` parameters, so *skewed* dims
(large ``o_1`` and ``i_2``, small ``i_1`` and ``o_2``) need less work for the same number of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

from mpochain.errors import ArgumentError, SpecError
from mpochain.spec import ChainSpec

__all__ = ["balanced", "candidate_specs", "default_dims", "factorizations", "low_rank", "padded", "skewed"]


def _check(value: int, name: str, error: type[ArgumentError] = SpecError) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise error(f"{name} must be a positive integer, got {value!r}")
    return value


@lru_cache(maxsize=4096)
def _divisors(n: int) -> tuple[int, ...]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return tuple(small + [n // d for d in reversed(small) if d * d != n])


def factorizations(n: int, sites: int) -> Iterator[tuple[int, ...]]:
    """All ascending factorisations of ``n`` into ``sites`` positive integers, 1 included.

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
    """Distance of dims from equal ones: the sum of squared deviations of their logarithms."""
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
    """Balanced dims of the smallest number from ``n`` on whose dims have a ratio of at most ``max_ratio``.

    For sizes without good factors, such as prime vocabulary sizes. Pass the true size as ``out_features`` or
    ``in_features`` of :class:`~mpochain.ChainSpec`.

    Args:
        n: number of features.
        sites: number of dims.
        max_ratio: largest allowed ratio of the largest to the smallest dim; at least 2, so that a solution near ``n``
            always exists.

    Raises:
        SpecError: ``n`` or ``sites`` is not a positive integer.
        ArgumentError: ``max_ratio`` is less than 2.

    Example:
        >>> padded(50257, 2), 206 * 244, padded(768, 2)
        ((206, 244), 50264, (24, 32))
    """
    if not max_ratio >= 2.0:
        raise ArgumentError(f"max_ratio must be at least 2, got {max_ratio}")
    size = _check(n, "n")
    while True:
        dims = balanced(size, sites)
        if dims[-1] <= max_ratio * dims[0]:
            return dims
        size += 1


def default_dims(n: int, sites: int = 2) -> tuple[int, ...]:
    """Balanced dims of ``n`` if they are useful, otherwise padded dims, such as for a prime.

    With a dim of 1, or a ratio of the dims above 16, a chain is hardly smaller than the matrix.

    Example:
        >>> default_dims(768), default_dims(65), default_dims(97)
        ((24, 32), (5, 13), (7, 14))
    """
    dims = balanced(n, sites)
    return dims if sites == 1 or (dims[0] > 1 and dims[-1] <= 16 * dims[0]) else padded(n, sites)


def low_rank(out_features: int, in_features: int, rank: int | None = None) -> ChainSpec:
    """Spec of a plain low-rank product ``(out, rank) @ (rank, in)``: dims ``(out, 1) | (1, in)``.

    Example:
        >>> low_rank(64, 32, 4).core_shapes
        ((1, 64, 1, 4), (4, 1, 32, 1))
    """
    return ChainSpec((_check(out_features, "out_features"), 1), (1, _check(in_features, "in_features")), rank)


def skewed(out_features: int, in_features: int, skew: int, max_bond: int | None = None) -> ChainSpec:
    """Two-site spec with dims ``(out / skew, skew) | (skew, in / skew)``.

    ``skew=1`` is low rank; larger skews have more parameters per bond and fewer multiply-adds than balanced dims.

    Raises:
        SpecError: ``skew`` does not divide both sizes.

    Example:
        >>> print(skewed(4096, 4096, 8, max_bond=16))
        4096x4096 (512,8)|(8,512) bonds (16), 131,072 parameters
    """
    for name, size in (("out_features", out_features), ("in_features", in_features)):
        if _check(size, name) % _check(skew, "skew"):
            raise SpecError(f"skew {skew} does not divide {name}={size}; choose one of its divisors, {_divisors(size)}")
    return ChainSpec((out_features // skew, skew), (skew, in_features // skew), max_bond)


def _largest_bond(spec: ChainSpec, parameters: int | None, macs: int | None) -> ChainSpec | None:
    """``spec`` with the largest uniform bond within the budget; None if bond 1 exceeds it."""

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
    """Candidate specs within a budget, with largest possible bonds: low rank, all skewed, and balanced chains.

    Args:
        out_features: rows of the matrix.
        in_features: columns of the matrix.
        parameters: largest total number of core elements.
        macs: largest number of multiply-adds per input row, in a sweep site by site.
        sites: numbers of sites of the balanced chains; a size without balanced factors is padded.

    Returns:
        Distinct specs within the budget, sorted by multiply-adds per row.

    Raises:
        ArgumentError: no budget, or a budget that is not a positive integer.

    Example:
        >>> for spec in candidate_specs(64, 64, parameters=1024)[:3]:
        ...     print(spec, spec.macs())
        64x64 (64,1)|(1,64) bonds (8), 1,024 parameters 1024
        64x64 (32,2)|(2,32) bonds (8), 1,024 parameters 2048
        64x64 (16,4)|(4,16) bonds (8), 1,024 parameters 4096
    """
    if parameters is None and macs is None:
        raise ArgumentError("candidate_specs needs a budget: parameters=, macs= or both")
    for name, budget in (("parameters", parameters), ("macs", macs)):
        if budget is not None:
            _check(budget, name, ArgumentError)
    specs = [
        skewed(out_features, in_features, skew)
        for skew in _divisors(math.gcd(out_features, in_features))
        if skew**2 <= min(out_features, in_features)
    ]
    for n in sites:
        # Of all orders of balanced dims, descending out dims with ascending in dims cost least.
        out_dims, in_dims = (default_dims(size, n) for size in (out_features, in_features))
        specs.append(ChainSpec(out_dims[::-1], in_dims, out_features=out_features, in_features=in_features))
    # A dict rather than a set, so that specs of equal cost keep their order.
    distinct = {bounded: None for spec in specs if (bounded := _largest_bond(spec, parameters, macs))}
    return sorted(distinct, key=lambda spec: (spec.macs(), spec.sites))
