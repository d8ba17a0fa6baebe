"""Canonical form of a chain, and truncation of its bonds with the exact error.

Source: I. Oseledets, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33 (2011), algorithm 2 (rounding).
"""

from __future__ import annotations

from collections.abc import Sequence

from mpochain.arrays import Array, namespace, norm, qr, svd
from mpochain.decomposition.sweep import Decomposition, retained_rank

__all__ = ["left_unfolding", "orthogonalize", "right_unfolding", "round_cores"]


def left_unfolding(core: Array) -> Array:
    """Left unfolding of a core: ``(r, o, i, s)`` as the matrix ``(r o i, s)``."""
    return namespace(core).reshape(core, (-1, core.shape[3]))


def right_unfolding(core: Array) -> Array:
    """Right unfolding of a core: ``(r, o, i, s)`` as the matrix ``(r, o i s)``."""
    return namespace(core).reshape(core, (core.shape[0], -1))


def _absorb_left(matrix: Array, core: Array) -> Array:
    """``matrix (q, r)`` times ``core (r, o, i, s)``."""
    return namespace(core).reshape(matrix @ right_unfolding(core), (-1, *core.shape[1:]))


def _absorb_right(core: Array, matrix: Array) -> Array:
    """``core (r, o, i, s)`` times ``matrix (s, q)``."""
    return namespace(core).reshape(left_unfolding(core) @ matrix, (*core.shape[:3], -1))


def orthogonalize(cores: Sequence[Array], center: int) -> list[Array]:
    """Canonical form of the same chain: cores are orthonormal on both sides of ``center`` (0-based), by QR.

    Bonds above the attainable ones are reduced without loss.
    """
    cores = list(cores)
    xp = namespace(*cores)
    for k in range(center):
        q, r = qr(left_unfolding(cores[k]))
        cores[k] = xp.reshape(q, (*cores[k].shape[:3], -1))
        cores[k + 1] = _absorb_left(r, cores[k + 1])
    for k in range(len(cores) - 1, center, -1):
        q, r = qr(xp.matrix_transpose(right_unfolding(cores[k])))
        cores[k] = xp.reshape(xp.matrix_transpose(q), (-1, *cores[k].shape[1:]))
        cores[k - 1] = _absorb_right(cores[k - 1], xp.matrix_transpose(r))
    return cores


def round_cores(cores: Sequence[Array], bonds: Sequence[int], cutoff: float | None) -> Decomposition:
    """Truncate every bond to at most ``bonds[k]``, and further where ``cutoff`` permits.

    Args:
        cores: arrays ``(r_left, out, in, r_right)``.
        bonds: largest inner bonds.
        cutoff: allowed relative Frobenius error of the whole chain, or ``None`` for no further truncation.
    """
    cores = orthogonalize(cores, 0)
    total = norm(cores[0])
    cores[0] = cores[0] / total if total else cores[0]
    share = None if cutoff is None else cutoff**2 / max(len(cores) - 1, 1)
    xp = namespace(*cores)
    discarded = []
    for k, bond in enumerate(bonds):
        u, s, vh = svd(left_unfolding(cores[k]))
        rank, dropped = retained_rank(s, bond, share)
        discarded.append(dropped)
        cores[k] = xp.reshape(u[:, :rank], (*cores[k].shape[:3], rank))
        cores[k + 1] = _absorb_left(s[:rank, None] * vh[:rank, :], cores[k + 1])
    return Decomposition((cores[0] * total, *cores[1:]), tuple(discarded), total)
