"""Groups of correlated rows and of correlated columns of a matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpochain.spec import ChainSpec

__all__ = ["correlated_groups"]

_Floats = NDArray[np.float64]
_Order = NDArray[np.int64]

_ROUNDS = 2


def correlated_groups(matrix: _Floats, spec: ChainSpec) -> tuple[_Order, _Order]:
    """An order of the rows and one of the columns, in which correlated rows and correlated columns are adjacent.

    In a sum of Kronecker products with ``A_r`` of independent entries, rows of one block are correlated and rows of
    different blocks are not; the same holds for columns. Once rows are grouped, columns are compared by the products of
    all rows within a group, not only of equal rows.

    Args:
        matrix: ``(m_1 m_2, n_1 n_2)``.
        spec: two sites ``(m_1, m_2) | (n_1, n_2)``.

    Example:
        >>> A, B = np.random.default_rng(0).normal(size=(20, 30)), np.array([[1.0, 0.5]])
        >>> order = np.random.default_rng(1).permutation(60)
        >>> _, columns = correlated_groups(np.kron(A, B)[:, order], ChainSpec((20, 1), (30, 2), 1))
        >>> pairs = order[columns].reshape(30, 2) // 2
        >>> bool((pairs[:, 0] == pairs[:, 1]).all())
        True
    """
    (m1, m2), (n1, n2) = spec.out_dims, spec.in_dims
    rows, columns = (_groups(side[:, None, :], size) for side, size in ((matrix, m2), (matrix.T, n2)))
    for _ in range(_ROUNDS):
        rows = _groups(matrix[:, columns].reshape(-1, n1, n2).transpose(0, 2, 1), m2)
        columns = _groups(matrix[rows].reshape(m1, m2, -1).transpose(2, 1, 0), n2)
    return rows, columns


def _similarity(members: _Floats) -> _Floats:
    """Similarity ``(k, k)`` of members ``(k, b, n)``: squared inner products of their vectors, over squared norms."""
    power = (members**2).sum(axis=(1, 2))
    power = np.where(power > 0, power, 1.0)
    total = np.zeros((len(members), len(members)))
    for a in range(members.shape[1]):
        for b in range(members.shape[1]):
            total += (members[:, a] @ members[:, b].T) ** 2
    return total / np.outer(power, power)


def _groups(members: _Floats, size: int) -> _Order:
    """An order of members in groups of ``size``, grown greedily from the most similar remaining members."""
    if size == 1:
        # No similarities: for the words of a vocabulary they would take tens of gigabytes.
        return np.arange(len(members))
    similarity = _similarity(members)
    np.fill_diagonal(similarity, -1.0)
    free = np.ones(len(similarity), dtype=bool)
    order: list[int] = []
    for first in np.argsort(-similarity.max(axis=1), kind="stable"):
        if not free[first]:
            continue
        free[first] = False
        group, together = [int(first)], similarity[first].copy()
        while len(group) < size:
            next_ = int(np.argmax(np.where(free, together, -np.inf)))
            free[next_] = False
            group.append(next_)
            together += similarity[next_]
        order += group
    return np.array(order, dtype=np.int64)
