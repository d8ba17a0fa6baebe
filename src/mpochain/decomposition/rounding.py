"""Canonical form of a chain, and truncation of its bonds with the exact error.

Source: I. Oseledets, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33 (2011), algorithm 2 (rounding).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpochain.arrays import Array, cast, dtype_name, in_range, ldexp, namespace, norm, times_power_of_two
from mpochain.decomposition.scaling import equalised
from mpochain.decomposition.sweep import Decomposition, retained_rank
from mpochain.errors import NonFiniteError
from mpochain.linalg import qr, svd

__all__ = ["left_unfolding", "orthogonalize", "orthogonalized", "reduced", "right_unfolding", "round_cores"]


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


def orthogonalize(cores: Sequence[Array], center: int, *, like: Array | None = None) -> list[Array]:
    """Canonical form of the same chain: cores are orthonormal on both sides of ``center`` (0-based), by QR.

    Bonds above the attainable ones are reduced without loss.

    Args:
        cores: arrays ``(r_left, out, in, r_right)``.
        center: the site.
        like: an array of the element type that has to hold the cores; by default that of the cores.

    Raises:
        NonFiniteError: the core at the center, which has the norm of the matrix, exceeds its element type.
    """
    like = cores[center] if like is None else like
    cores, exponent = orthogonalized(cores, center)
    cores[center] = times_power_of_two(cores[center], exponent)
    if exponent or dtype_name(like) == "float16":
        xp = namespace(like)
        with np.errstate(over="ignore"):
            fits = bool(xp.all(xp.isfinite(cast(cores[center], like))))
        if not fits:
            raise NonFiniteError(
                f"the core at site {center} would have the norm of the whole matrix, which exceeds its element type; "
                "use float64, or scale the matrix down first"
            )
    return cores


def orthogonalized(cores: Sequence[Array], center: int) -> tuple[list[Array], int]:
    """Canonical cores in the range of safe products, and the power of two that multiplies the matrix."""
    exponents = [0] * len(cores)
    cores = list(cores)
    xp = namespace(*cores)

    def keep_in_range(site: int) -> None:
        cores[site], exponent = in_range(cores[site])
        exponents[site] += exponent

    for site in range(len(cores)):
        keep_in_range(site)
    for k in range(center):
        q, r = qr(left_unfolding(cores[k]))
        cores[k] = xp.reshape(q, (*cores[k].shape[:3], -1))
        cores[k + 1] = _absorb_left(r, cores[k + 1])
        keep_in_range(k + 1)
    for k in range(len(cores) - 1, center, -1):
        q, r = qr(xp.matrix_transpose(right_unfolding(cores[k])))
        cores[k] = xp.reshape(xp.matrix_transpose(q), (-1, *cores[k].shape[1:]))
        cores[k - 1] = _absorb_right(cores[k - 1], xp.matrix_transpose(r))
        keep_in_range(k - 1)
    return cores, sum(exponents)


def reduced(cores: Sequence[Array]) -> list[Array]:
    """The same chain with bonds at most the attainable ones, by QR in both directions."""
    cores, first = orthogonalized(cores, len(cores) - 1)
    cores, second = orthogonalized(cores, 0)
    # A norm near the limits of the element type would not fit into one core.
    return equalised(cores, 1.0, first + second) if first + second else cores


def round_cores(cores: Sequence[Array], bonds: Sequence[int], cutoff: float | None) -> Decomposition:
    """Truncate every bond to at most ``bonds[k]``, and further where ``cutoff`` permits.

    Args:
        cores: arrays ``(r_left, out, in, r_right)``.
        bonds: largest inner bonds.
        cutoff: allowed relative Frobenius error of the whole chain, or ``None`` for no further truncation.
    """
    cores, exponent = orthogonalized(cores, 0)
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
    # A norm near the limits of the element type would not fit into one core.
    scaled = equalised(cores, total, exponent) if exponent else [cores[0] * total, *cores[1:]]
    return Decomposition(tuple(scaled), tuple(discarded), ldexp(total, exponent))
