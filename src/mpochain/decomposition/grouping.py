"""Rows and columns of a matrix that are correlated, in groups of one size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpochain.spec import ChainSpec

__all__ = ["correlated_groups"]

_Floats = NDArray[np.float64]
_Order = NDArray[np.int64]

_ROUNDS = 2


def correlated_groups(matrix: _Floats, spec: ChainSpec) -> tuple[_Order, _Order]:
    """An order of rows and one of columns, in which those that belong together stand together.

    In a sum of Kronecker products with ``A_r`` of independent entries, rows of different blocks are uncorrelated and
    rows of one block are not, and so for columns. Once the rows have groups, columns are compared by all products of a
    group's rows, and not only of equal rows.

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


def _likeness(members: _Floats) -> _Floats:
    """``(k, k)`` of ``(k, b, n)``: squared products of all vectors of two members, over the power of both."""
    power = (members**2).sum(axis=(1, 2))
    power = np.where(power > 0, power, 1.0)
    total = np.zeros((len(members), len(members)))
    for one in range(members.shape[1]):
        for other in range(members.shape[1]):
            total += (members[:, one] @ members[:, other].T) ** 2
    return total / np.outer(power, power)


def _groups(members: _Floats, size: int) -> _Order:
    """Groups grown from the most alike that are left, one member after the other."""
    if size == 1:
        # Before they are compared: the words of a vocabulary with each other would take tens of gigabytes.
        return np.arange(len(members))
    likeness = _likeness(members)
    np.fill_diagonal(likeness, -1.0)
    free = np.ones(len(likeness), dtype=bool)
    order: list[int] = []
    for first in np.argsort(-likeness.max(axis=1), kind="stable"):
        if not free[first]:
            continue
        free[first] = False
        group, together = [int(first)], likeness[first].copy()
        while len(group) < size:
            next_ = int(np.argmax(np.where(free, together, -np.inf)))
            free[next_] = False
            group.append(next_)
            together += likeness[next_]
        order += group
    return np.array(order, dtype=np.int64)
