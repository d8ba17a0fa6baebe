"""Columns in an order that the best sum of Kronecker products suits better: one kind of move a function.

Each takes rows and columns as they are and gives the columns anew; rows are the columns of the transposed problem. What
the moves are for: :mod:`mpochain.decomposition.permutation`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpochain.decomposition.assignment import best_assignment, greedy_assignment
from mpochain.decomposition.kronecker import KroneckerBlocks

__all__ = ["Noise", "assigned", "halved", "mixed", "ordered_within", "predicted"]

_Floats = NDArray[np.float64]
_Order = NDArray[np.int64]

# Share of the groups that are mixed when nothing else helps; no others than those that leave out so many times as much
# as groups in the middle, if there are such.
_MIXED, _OUTLYING = 0.05, 10.0

# Orders of a group that are all tried; groups of more members than that are ordered by assignment alone.
_MOST_ORDERS = 24

# Columns up to which assignments are always the best there are, and share of them that moves at most for it with more.
_FEW, _MOST_MOVED = 1024, 0.5

# Members of a group at most for which every half is tried.
_MOST_HALVED = 8


@dataclass(frozen=True)
class Noise:
    """What is added to scores, so that a search may leave an order that no single move improves.

    Attributes:
        random: where it is drawn from.
        share: its standard deviation over that of the scores.

    Example:
        >>> Noise(np.random.default_rng(0), 0.0).on(np.eye(2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    random: np.random.Generator
    share: float

    def on(self, scores: _Floats) -> _Floats:
        """Scores of any shape with noise."""
        if not self.share:
            return scores
        return scores + self.share * scores.std() * self.random.normal(size=scores.shape)


def ordered_within(problem: KroneckerBlocks, rows: _Order, columns: _Order) -> _Order:
    """Each group of columns in the order that leaves most in the span of the ``B_r``."""
    if problem.n2 == 1 or math.factorial(problem.n2) > _MOST_ORDERS:
        return columns
    blocks = problem.blocks(rows, columns)
    span = problem.span(blocks)
    projection = span @ span.T
    flat = blocks.reshape(problem.m1, problem.n1, -1).transpose(1, 0, 2)
    moments = flat.transpose(0, 2, 1) @ flat
    places = np.arange(problem.m2 * problem.n2).reshape(problem.m2, problem.n2)
    orders = np.array(list(itertools.permutations(range(problem.n2))))
    kept = np.stack(
        [
            np.einsum("ij,cij->c", projection, moments[:, index][:, :, index])
            for index in (places[:, order].ravel() for order in orders)
        ]
    )
    best = orders[kept.argmax(axis=0)]
    return np.take_along_axis(columns.reshape(problem.n1, problem.n2), best, axis=1).ravel()


def mixed(problem: KroneckerBlocks, rows: _Order, columns: _Order, random: np.random.Generator) -> _Order:
    """Columns of the groups that fit worst, in any order: where most fit, these hold each other's members."""
    if problem.n2 == 1:
        return columns
    blocks = problem.blocks(rows, columns)
    span = problem.span(blocks)
    flat = blocks.reshape(problem.m1, problem.n1, -1)
    rest = ((flat - (flat @ span) @ span.T) ** 2).sum(axis=(0, 2))
    # Where most fit exactly only the others, so that what was found is not lost again.
    most = np.count_nonzero(rest > _OUTLYING * np.median(rest))
    worst = np.argsort(-rest)[: max(min(int(_MIXED * problem.n1), most or problem.n1), 2)]
    groups = columns.reshape(problem.n1, problem.n2).copy()
    groups[worst] = random.permutation(groups[worst].ravel()).reshape(-1, problem.n2)
    return groups.ravel()


def assigned(problem: KroneckerBlocks, rows: _Order, columns: _Order, noise: Noise) -> _Order:
    """Columns in the order that is closest to the best sum for the order they have."""
    if 1 in (problem.n1, problem.n2):
        return columns
    blocks = problem.blocks(rows, columns)
    scores = problem.matrix[rows].T @ problem.sum(blocks, problem.span(blocks))
    return best_assignment(noise.on(scores))


def predicted(problem: KroneckerBlocks, rows: _Order, columns: _Order, noise: Noise) -> _Order:
    """Columns in the order that is closest to what the others of each group say."""
    if problem.n2 == 1:
        return columns
    blocks = problem.blocks(rows, columns)
    moments = problem.moments(blocks)
    said = np.empty_like(blocks)
    power = np.empty((problem.n1 * problem.n2, problem.n2))
    members = problem.matrix[rows].reshape(problem.m1, problem.m2, -1)
    for place in range(problem.n2):
        predicted, trust = problem.from_others(blocks, moments, [place])
        said[..., place] = (predicted @ trust).reshape(problem.m1, problem.n1, problem.m2)
        power[:, place] = np.einsum("abc,bd,adc->c", members, trust, members, optimize=True)
    scores = problem.matrix[rows].T @ problem.joined(said)
    return _assign(scores - np.tile(power / 2, problem.n1), noise, columns)


def halved(problem: KroneckerBlocks, rows: _Order, columns: _Order, noise: Noise) -> _Order:
    """Groups of columns that exchange halves, by what the other halves say: where two groups hold each other's."""
    if not 1 < problem.n2 <= _MOST_HALVED:
        return columns
    # Those with the first place: their complements would exchange the same.
    for rest in itertools.combinations(range(1, problem.n2), problem.n2 // 2 - 1):
        places = [0, *rest]
        blocks = problem.blocks(rows, columns)
        predicted, trust = problem.from_others(blocks, problem.moments(blocks), places)
        halves = blocks[..., places].reshape(problem.m1, problem.n1, -1)
        scores = np.tensordot(halves, predicted @ trust, axes=((0, 2), (0, 2)))
        columns = columns.reshape(problem.n1, problem.n2).copy()
        columns[:, places] = columns[_assign(scores, noise, np.arange(problem.n1))][:, places]
        columns = columns.ravel()
    return columns


def _assign(scores: _Floats, noise: Noise, now: _Order) -> _Order:
    """For each place the column with which the scores have the largest sum, or nearly so where most are to move.

    While most columns are in wrong places their scores are nearly alike: the best assignment takes long then, for
    little.
    """
    scores = noise.on(scores)
    if len(scores) > _FEW:
        quick = greedy_assignment(scores)
        if np.mean(quick != now) > _MOST_MOVED:
            return quick
    return best_assignment(scores)
