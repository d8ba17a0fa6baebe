"""Contraction candidates: groups of contiguous sites to merge, then the best order of the merged cores.

opt_einsum cannot express that products of cores cost nothing once they are cached (its issue 199), so the groupings are
enumerated here, and the order of each merged chain is searched separately. A path that contracts two cores before
either meets the input is a sweep of a coarser grouping, which is enumerated too. So all candidates are sweeps, which
need no permuted copies (see :mod:`mpochain.planning.schedule`). The two plain sweeps of each grouping are candidates
as well, since the fewest multiply-adds, which opt_einsum searches for, are not always the shortest time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise

import opt_einsum

from mpochain.planning.schedule import Schedule, lower
from mpochain.spec import ChainSpec

__all__ = ["Candidate", "candidates", "equation", "unmerged"]

# opt_einsum's exhaustive search takes 1 ms for four cores and 0.1 s for eight, and runs once per grouping. Longer
# chains are searched here, over sweeps only, since any other path is a sweep of a coarser grouping. Very long chains
# have only their plain sweeps.
_EXHAUSTIVE_CORES = 4
_SEARCHED_CORES = 10
_EXHAUSTIVE_SITES = 6

Group = tuple[int, ...]
PathPair = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a chain.

    Attributes:
        groups: groups of contiguous sites, each merged into one core.
        order: order in which the merged cores meet the input.
        path: the order as an opt_einsum path over ``(input, merged cores...)``.
        searched: True if the order is the result of the search for the fewest multiply-adds.
        equation: einsum equation of the merged chain.
        schedule: the lowered steps.
    """

    groups: tuple[Group, ...]
    order: tuple[int, ...]
    path: tuple[PathPair, ...]
    searched: bool
    equation: str
    schedule: Schedule

    @property
    def rebuilds(self) -> bool:
        """True if all sites are merged, which rebuilds the dense matrix."""
        return len(self.groups) == 1

    def __str__(self) -> str:
        folds = " ".join("{" + ",".join(str(site) for site in group) + "}" for group in self.groups)
        if self.rebuilds:
            return f"rebuild {folds}, one product"
        return f"{folds} order {'>'.join(map(str, self.order))}"


def equation(sites: int) -> str:
    """The einsum equation of a chain: input, then cores, to output.

    Example:
        >>> equation(2)
        'abc,debf,fgch->aeg'
    """
    symbols = iter(opt_einsum.get_symbol(k) for k in range(3 * sites + 2))
    batch = next(symbols)
    ins = [next(symbols) for _ in range(sites)]
    cores, outs, bond = [], [], next(symbols)
    for in_ in ins:
        out, left, bond = next(symbols), bond, next(symbols)
        outs.append(out)
        cores.append(left + out + in_ + bond)
    return f"{batch}{''.join(ins)},{','.join(cores)}->{batch}{''.join(outs)}"


def _groupings(sites: int) -> Iterator[tuple[Group, ...]]:
    """Contiguous groupings: all for short chains; for long chains, those with at most one merged group."""
    if sites <= _EXHAUSTIVE_SITES:
        for count in range(sites):
            for cuts in combinations(range(1, sites), count):
                edges = (0, *cuts, sites)
                yield tuple(tuple(range(a, b)) for a, b in pairwise(edges))
        return
    yield tuple((k,) for k in range(sites))
    for start in range(sites):
        for stop in range(start + 2, sites + 1):
            yield (*((k,) for k in range(start)), tuple(range(start, stop)), *((k,) for k in range(stop, sites)))


def _merge_positions(spec: ChainSpec, groups: tuple[Group, ...]) -> list[int]:
    """The cheapest order of merges within each group, as positions in the shrinking list of cores."""
    splits = _cheapest_splits(spec)
    positions = []

    def merge(first: int, last: int, position: int) -> None:
        if first == last:
            return
        middle = splits[first, last]
        merge(first, middle, position)
        merge(middle + 1, last, position + 1)
        positions.append(position)

    for position, group in enumerate(groups):
        merge(group[0], group[-1], position)
    return positions


@lru_cache(maxsize=256)
def _cheapest_splits(spec: ChainSpec) -> dict[tuple[int, int], int]:
    """For sites ``first..last``, the last site of the left part in the cheapest merge: matrix-chain ordering."""
    sizes = [o * i for o, i in zip(spec.out_dims, spec.in_dims, strict=True)]
    edges = (1, *spec.bonds, 1)
    cost = {(k, k): 0 for k in range(spec.sites)}
    splits = {}
    for length in range(1, spec.sites):
        for first in range(spec.sites - length):
            last = first + length
            outer = edges[first] * math.prod(sizes[first : last + 1]) * edges[last + 1]
            options = [(cost[first, k] + cost[k + 1, last] + outer * edges[k + 1], k) for k in range(first, last)]
            cost[first, last], splits[first, last] = min(options)
    return splits


def _path(eq: str, shapes: Sequence[tuple[int, ...]]) -> list[PathPair]:
    # Calls the search directly: contract_path would spend a third of the time on checks, copies and counts.
    terms, output = eq.split("->")
    inputs = terms.split(",")
    sizes = {
        index: size for term, shape in zip(inputs, shapes, strict=True) for index, size in zip(term, shape, strict=True)
    }
    return list(opt_einsum.paths.optimal([frozenset(term) for term in inputs], frozenset(output), sizes, None))


def _fewest_macs(shapes: Sequence[tuple[int, int, int, int]]) -> tuple[int, ...]:
    """The order with the fewest multiply-adds, by dynamic programming over sets of cores that have met the input."""
    count = len(shapes)
    state = {0: math.prod(in_ for _, _, in_, _ in shapes)}
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    for done in range((1 << count) - 1):
        macs, order = best[done]
        for core, (left, out, in_, right) in enumerate(shapes):
            if done >> core & 1:
                continue
            left_met, right_met = bool(core and done >> (core - 1) & 1), bool(done >> (core + 1) & 1)
            summed = in_ * (left if left_met else 1) * (right if right_met else 1)
            kept = out * (1 if left_met else left) * (1 if right_met else right)
            after = done | 1 << core
            state[after] = state[done] // summed * kept
            extended = macs + state[done] * kept, (*order, core)
            if after not in best or extended < best[after]:
                best[after] = extended
    return best[(1 << count) - 1][1]


def _sweep_order(path: list[PathPair], count: int) -> tuple[int, ...] | None:
    """The order of cores if every contraction of the path includes the input, else None."""
    names: list[int | None] = [None, *range(count)]
    order = []
    for pair in path:
        members = [names[k] for k in pair]
        if None not in members or len(pair) != 2:
            return None
        (core,) = (member for member in members if member is not None)
        order.append(core)
        for k in sorted(pair, reverse=True):
            del names[k]
        names.append(None)
    return tuple(order)


def _path_of(order: tuple[int, ...]) -> tuple[PathPair, ...]:
    """The path of an order, in which every core meets the current intermediate; the inverse of :func:`_sweep_order`."""
    names: list[int | None] = [None, *range(len(order))]
    path = []
    for core in order:
        pair = tuple(sorted((names.index(None), names.index(core))))
        path.append(pair)
        for k in reversed(pair):
            del names[k]
        names.append(None)
    return tuple(path)


def candidates(spec: ChainSpec, batch: int) -> Iterator[Candidate]:
    """All candidate sweeps for ``batch`` rows, including the rebuild of the dense matrix.

    Chains of up to 6 sites have all groupings; longer chains, those with at most one merged group.

    Example:
        >>> [str(c) for c in candidates(ChainSpec((8, 8), (8, 8), max_bond=4), batch=16)]
        ['rebuild {0,1}, one product', '{0} {1} order 0>1', '{0} {1} order 1>0']
    """
    for groups in _groupings(spec.sites):
        yield from _of_groups(spec, batch, groups)


def unmerged(spec: ChainSpec, batch: int) -> Candidate:
    """The candidate of the fewest multiply-adds among those that merge no cores.

    Example:
        >>> str(unmerged(ChainSpec((8, 8), (8, 8), max_bond=64), batch=16))
        '{0} {1} order 0>1'
    """
    groups = tuple((site,) for site in range(spec.sites))
    # Of two sweeps of equal cost the search may return either, and a file is to be the same each time.
    return min(_of_groups(spec, batch, groups), key=lambda candidate: (candidate.schedule.sweep_macs, candidate.order))


def _of_groups(spec: ChainSpec, batch: int, groups: tuple[Group, ...]) -> Iterator[Candidate]:
    merges = _merge_positions(spec, groups)
    shapes = list(spec.core_shapes)
    for step in lower(spec, groups, merges, ()).merges:
        shapes[step.position : step.position + 2] = [step.result]
    count = len(groups)
    eq = equation(count)
    searched = None
    if count <= _EXHAUSTIVE_CORES:
        searched = _sweep_order(_path(eq, [(batch, *(i for _, _, i, _ in shapes)), *shapes]), count)
    elif count <= _SEARCHED_CORES:
        searched = _fewest_macs(shapes)
    plain = tuple(range(count))
    for order in dict.fromkeys(order for order in (searched, plain[::-1], plain) if order is not None):
        schedule = lower(spec, groups, merges, order)
        yield Candidate(groups, order, _path_of(order), order == searched, eq, schedule)
