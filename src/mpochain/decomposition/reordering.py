"""Moves of the permuted Kronecker search, one function per move.

Each move takes the current order of rows and columns and returns a new order of columns; rows are the columns of the
transposed problem. :mod:`mpochain.decomposition.permutation` explains the moves.
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

# Share of the groups that is shuffled when other moves no longer help. If the residual of some groups exceeds this
# multiple of the median, only these are shuffled.
_MIXED, _OUTLYING = 0.05, 10.0

# Largest number of orders of a group for which every order is tried; larger groups are ordered only by assignment.
_MOST_ORDERS = 24

# Up to this number of columns assignments are always optimal; with more columns, only if at most this share moves.
_FEW, _MOST_MOVED = 1024, 0.5

# Largest group for which every half is tried.
_MOST_HALVED = 8


@dataclass(frozen=True)
class Noise:
    """Noise added to assignment scores, so that the search can leave a local optimum.

    Attributes:
        random: random generator.
        share: standard deviation of the noise relative to that of the scores.

    Example:
        >>> Noise(np.random.default_rng(0), 0.0).added_to(np.eye(2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    random: np.random.Generator
    share: float

    def added_to(self, scores: _Floats) -> _Floats:
        """Scores of any shape plus noise."""
        if not self.share:
            return scores
        return scores + self.share * scores.std() * self.random.normal(size=scores.shape)


def ordered_within(problem: KroneckerBlocks, rows: _Order, columns: _Order) -> _Order:
    """Order each group of columns such that most of its norm lies in the span of the ``B_r``."""
    if problem.n2 == 1 or math.factorial(problem.n2) > _MOST_ORDERS:
        return columns
    blocks = problem.blocks(rows, columns)
    span = problem.span(blocks)
    projection = span @ span.T
    flat = blocks.reshape(problem.m1, problem.n1, -1).transpose(1, 0, 2)
    moments = flat.transpose(0, 2, 1) @ flat
    entries = np.arange(problem.m2 * problem.n2).reshape(problem.m2, problem.n2)
    orders = np.array(list(itertools.permutations(range(problem.n2))))
    kept = np.stack(
        [
            np.einsum("ij,cij->c", projection, moments[:, index][:, :, index])
            for index in (entries[:, order].ravel() for order in orders)
        ]
    )
    best = orders[kept.argmax(axis=0)]
    return np.take_along_axis(columns.reshape(problem.n1, problem.n2), best, axis=1).ravel()


def mixed(problem: KroneckerBlocks, rows: _Order, columns: _Order, random: np.random.Generator) -> _Order:
    """Shuffle the columns of the worst-fitting groups among these groups, which likely hold wrong members."""
    if problem.n2 == 1:
        return columns
    blocks = problem.blocks(rows, columns)
    span = problem.span(blocks)
    flat = blocks.reshape(problem.m1, problem.n1, -1)
    rest = ((flat - (flat @ span) @ span.T) ** 2).sum(axis=(0, 2))
    # If most groups fit exactly, shuffle only the others, so that the good ones are not lost.
    most = np.count_nonzero(rest > _OUTLYING * np.median(rest))
    worst = np.argsort(-rest)[: max(min(int(_MIXED * problem.n1), most or problem.n1), 2)]
    groups = columns.reshape(problem.n1, problem.n2).copy()
    groups[worst] = random.permutation(groups[worst].ravel()).reshape(-1, problem.n2)
    return groups.ravel()


def assigned(problem: KroneckerBlocks, rows: _Order, columns: _Order, noise: Noise) -> _Order:
    """Order the columns closest to the best sum for their current order."""
    if 1 in (problem.n1, problem.n2):
        return columns
    blocks = problem.blocks(rows, columns)
    scores = problem.matrix[rows].T @ problem.sum(blocks, problem.span(blocks))
    return best_assignment(noise.added_to(scores))


def predicted(problem: KroneckerBlocks, rows: _Order, columns: _Order, noise: Noise) -> _Order:
    """Order the columns closest to the predictions from the other columns of each group."""
    if problem.n2 == 1:
        return columns
    blocks = problem.blocks(rows, columns)
    moments = problem.moments(blocks)
    targets = np.empty_like(blocks)
    power = np.empty((problem.n1 * problem.n2, problem.n2))
    members = problem.matrix[rows].reshape(problem.m1, problem.m2, -1)
    for slot in range(problem.n2):
        prediction, precision = problem.predicted_from_others(blocks, moments, [slot])
        targets[..., slot] = (prediction @ precision).reshape(problem.m1, problem.n1, problem.m2)
        power[:, slot] = np.einsum("abc,bd,adc->c", members, precision, members, optimize=True)
    scores = problem.matrix[rows].T @ problem.joined(targets)
    return _assigned_columns(scores - np.tile(power / 2, problem.n1), noise, columns)


def halved(problem: KroneckerBlocks, rows: _Order, columns: _Order, noise: Noise) -> _Order:
    """Exchange halves between groups of columns, by the predictions from their other halves."""
    if not 1 < problem.n2 <= _MOST_HALVED:
        return columns
    # Only halves with the first slot, since their complements would give the same exchanges.
    for rest in itertools.combinations(range(1, problem.n2), problem.n2 // 2 - 1):
        slots = [0, *rest]
        blocks = problem.blocks(rows, columns)
        prediction, precision = problem.predicted_from_others(blocks, problem.moments(blocks), slots)
        halves = blocks[..., slots].reshape(problem.m1, problem.n1, -1)
        scores = np.tensordot(halves, prediction @ precision, axes=((0, 2), (0, 2)))
        columns = columns.reshape(problem.n1, problem.n2).copy()
        columns[:, slots] = columns[_assigned_columns(scores, noise, np.arange(problem.n1))][:, slots]
        columns = columns.ravel()
    return columns


def _assigned_columns(scores: _Floats, noise: Noise, current: _Order) -> _Order:
    """Assign a column to each slot: optimally, or greedily while most columns have to move.

    While most columns are in wrong slots, their scores are nearly equal, and an optimal assignment takes long for
    little gain.
    """
    scores = noise.added_to(scores)
    if len(scores) > _FEW:
        greedy = greedy_assignment(scores)
        if np.mean(greedy != current) > _MOST_MOVED:
            return greedy
    return best_assignment(scores)
