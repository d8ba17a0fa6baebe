"""Block tensor trains of a matrix: the best tiles of a rank in a metric, and a refit of the second factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpochain.errors import ShapeError
from mpochain.linalg import cholesky, inverse, solve, svd

__all__ = ["Tiles", "refitted_tiles", "tiles_of"]

_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tiles:
    """Low-rank approximations of all tiles of a matrix at every rank.

    Attributes:
        left: ``(o_1, i_1, o_2, k)``, left factors; those of rank ``r`` are the first ``r`` columns.
        right: ``(o_1, i_1, k, i_2)``, right factors.
        errors: ``(k + 1,)``, sum of the squared weighted errors of all tiles, of ranks from 0 to ``k``.
    """

    left: _Floats
    right: _Floats
    errors: _Floats

    def factors(self, rank: int) -> tuple[_Floats, _Floats]:
        """First factor ``(i_1, o_1 r, i_2)`` and second factor ``(o_1, o_2, i_1 r)`` of a rank."""
        first = self.right[:, :, :rank].transpose(1, 0, 2, 3)
        second = self.left[..., :rank].transpose(0, 2, 1, 3)
        i_1, o_1, _, i_2 = first.shape
        return first.reshape(i_1, o_1 * rank, i_2), second.reshape(o_1, second.shape[1], i_1 * rank)


def tiles_of(
    weight: _Floats,
    out_dims: tuple[int, int],
    in_dims: tuple[int, int],
    *,
    inputs: _Floats | None = None,
    outputs: _Floats | None = None,
) -> Tiles:
    """The best low-rank approximation of every tile, each weighted by its own blocks of two metrics.

    What the blocks beside the diagonal of a metric say of the errors of two tiles together is left to
    :func:`refitted_tiles`.

    Args:
        weight: ``W (o_1 o_2, i_1 i_2)``.
        out_dims: ``(o_1, o_2)``.
        in_dims: ``(i_1, i_2)``.
        inputs: ``H (in, in)``, positive definite; None for the identity.
        outputs: ``G (out, out)``, positive definite; None for the identity.

    Raises:
        ShapeError: the dims do not multiply to the shape of the weight.

    Example:
        >>> tiles = tiles_of(np.eye(6), (2, 3), (3, 2))
        >>> tiles.left.shape, float(tiles.errors[-1])
        ((2, 3, 3, 2), 0.0)
    """
    (o_1, o_2), (i_1, i_2) = out_dims, in_dims
    if weight.shape != (o_1 * o_2, i_1 * i_2):
        raise ShapeError(f"dims {out_dims} and {in_dims} do not multiply to the shape {weight.shape} of the weight")
    tiles = weight.reshape(o_1, o_2, i_1, i_2).transpose(0, 2, 1, 3)
    rows, rows_back = _roots(outputs, o_1, o_2)
    columns, columns_back = _roots(inputs, i_1, i_2)
    weighted = rows.transpose(0, 2, 1)[:, None] @ tiles @ columns[None]
    u, s, vh = svd(weighted)
    roots = np.sqrt(s)
    left = rows_back[:, None] @ (u * roots[:, :, None, :])
    # Two zero factors could never be trained, so the first one keeps a direction.
    kept = np.where(s > 0, roots, i_2**-0.5)
    right = (kept[..., None] * vh) @ columns_back.transpose(0, 2, 1)[None]
    squares = (s**2).sum((0, 1))
    errors = np.append(squares[::-1].cumsum()[::-1], 0.0)
    return Tiles(left, right, errors)


def refitted_tiles(weight: _Floats, first: _Floats, second: _Floats, inputs: _Floats) -> _Floats:
    """The second factor that fits a weight best, given the first one, weighted by the inputs in full.

    Args:
        weight: ``W (o_1 o_2, i_1 i_2)``.
        first: ``(i_1, o_1 r, i_2)``.
        second: ``(o_1, o_2, i_1 r)``, for its shape.
        inputs: ``H (in, in)``, positive definite.

    Example:
        >>> tiles = tiles_of(np.eye(6), (2, 3), (3, 2))
        >>> first, second = tiles.factors(2)
        >>> bool(np.allclose(refitted_tiles(np.eye(6), first, second, np.eye(6)), second))
        True
    """
    i_1, _, i_2 = first.shape
    o_1, o_2, states = second.shape
    bond = states // i_1
    parts = first.reshape(i_1, o_1, bond, i_2)
    blocks = inputs.reshape(i_1, i_2, i_1, i_2)
    targets = (weight @ inputs).reshape(o_1, o_2, i_1, i_2)
    refitted = np.empty_like(second)
    for part in range(o_1):
        own = parts[:, part]  # (i_1, r, i_2)
        seen = np.einsum("xai,xiyj->xayj", own, blocks, optimize=True)
        gram = np.einsum("xayj,ybj->xayb", seen, own, optimize=True).reshape(states, states)
        ridge = 1e-9 * max(float(np.trace(gram)) / states, np.finfo(np.float64).tiny)
        right = np.einsum("oxi,xai->xao", targets[part], own, optimize=True).reshape(states, o_2)
        refitted[part] = solve(gram + ridge * np.eye(states), right).T
    return refitted


def _roots(metric: _Floats | None, parts: int, part: int) -> tuple[Any, Any]:
    """For each diagonal block ``M = R R^T`` of a metric its root ``R``, and the inverse ``M^-1 R`` of ``R^T``."""
    if metric is None:
        identity = np.broadcast_to(np.eye(part), (parts, part, part))
        return identity, identity
    blocks = [metric[k * part : (k + 1) * part, k * part : (k + 1) * part] for k in range(parts)]
    roots = [cholesky(block) for block in blocks]
    back = [inverse(block) @ root for block, root in zip(blocks, roots, strict=True)]
    return np.stack(roots), np.stack(back)
