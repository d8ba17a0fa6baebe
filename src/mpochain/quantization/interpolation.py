"""A low-rank matrix in interpolative form, with its rows and coefficients in few bits.

The matrix is ``L R`` with ``R`` some of its rows, ``L = [1; C]`` and ``C`` the coefficients of the others. The error
``tr(G (W - L R) H (W - L R)^T)`` is quadratic in each factor:

- A change of ``R`` by ``E`` adds ``tr(L^T G L E H E^T)``, so the rows are rounded along both sides with these moments.
- For rounded rows the best coefficients have a closed form, least squares for ``W`` itself. What the rounded rows miss
  of their own outputs is made up for by the others, as far as ``G`` correlates them.
- A change of these coefficients by ``E`` adds ``tr(G_2 E (R H R^T) E^T)``, with ``G_2`` the weights of their outputs.
- For rounded coefficients the best rows have a closed form too, from which a second round starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mpochain.arrays import detached, promoted, require_finite, require_matrix
from mpochain.decomposition import Interpolation
from mpochain.errors import ArgumentError, ShapeError
from mpochain.linalg import solve
from mpochain.quantization.codes import Quantized
from mpochain.quantization.scheme import Scheme
from mpochain.quantization.triangle import Triangle, input_triangle, output_triangle
from mpochain.quantization.two_sided import two_sided

__all__ = ["QuantizedInterpolation", "interpolation"]

# Rounded rows may be linearly dependent. This share of the mean diagonal of their moments holds the coefficients where
# they are in directions that no row has.
_RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class QuantizedInterpolation:
    """An :class:`~mpochain.decomposition.Interpolation` whose tensors are in few bits.

    Attributes:
        rows: ``(r, in)``.
        coefficients: ``(out - r, r)``; None if all rows are selected.
        permutation: as that of the interpolation.
        relative_error: of the whole matrix, low rank and rounding together, in the norm of the damped moments.
    """

    rows: Quantized
    coefficients: Quantized | None
    permutation: tuple[int, ...]
    relative_error: float

    @property
    def bytes(self) -> int:
        """Bytes of rows and coefficients when stored, without the permutation."""
        return self.rows.bytes + (0 if self.coefficients is None else self.coefficients.bytes)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Interpolation:
        """The interpolation with tensors of a float type."""
        rows = self.rows.dequantized(dtype)
        none = rows.new_zeros(0, len(rows))
        coefficients = none if self.coefficients is None else self.coefficients.dequantized(dtype)
        return Interpolation(rows, coefficients, self.permutation)


def interpolation(
    matrix: Tensor,
    low_rank: Interpolation,
    scheme: Scheme,
    inputs: Tensor | Triangle | None = None,
    outputs: Tensor | Triangle | None = None,
    *,
    coefficient_scheme: Scheme | None = None,
    rounds: int = 2,
    name: str = "the matrix",
) -> QuantizedInterpolation:
    """Round a low-rank approximation in interpolative form, and refit each factor to the rounded other.

    Args:
        matrix: ``W (out, in)``, the matrix to approximate, any float type.
        low_rank: an approximation of it.
        scheme: bits, group and symmetry of the rows.
        inputs: ``H (in, in)``, see :func:`two_sided`; equal weights if not given.
        outputs: ``G (out, out)``, see :func:`two_sided`; equal weights if not given.
        coefficient_scheme: that of the coefficients; the same if not given.
        rounds: how often rows and coefficients are rounded, at least 1; the best round is returned. The second lowers
            the squared error by a fifth to a third at 2 bits, a tenth at 3 and a twentieth at 4.
        name: name of the matrix in errors.

    Raises:
        ArgumentError: factors that are too large or too small for float16 scales, or no rounds.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.
        ShapeError: an approximation or moments that do not fit the matrix.

    Example:
        >>> from mpochain.decomposition import interpolative, weighted_low_rank
        >>> random = torch.Generator().manual_seed(0)
        >>> W = torch.randn(48, 16, generator=random) @ torch.randn(16, 64, generator=random)
        >>> low_rank = interpolative(*weighted_low_rank(W).factors(16))
        >>> for bits in (8, 4, 3):
        ...     short = interpolation(W, low_rank, Scheme(bits))
        ...     print(bits, short.bytes, round(short.relative_error, 1))
        8 1680 0.0
        4 912 0.1
        3 784 0.2
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ArgumentError(f"rounds must be a positive integer, got {rounds!r}")
    require_matrix(matrix, name)
    matrix64 = promoted(detached(matrix), name).double()
    require_finite(matrix64, name)
    rows, columns = matrix64.shape
    fits = tuple(low_rank.rows.shape) == (low_rank.rank, columns) and len(low_rank.permutation) == rows
    if not fits or tuple(low_rank.coefficients.shape) != (rows - low_rank.rank, low_rank.rank):
        raise ShapeError(
            f"the interpolation of {name}, a {rows}x{columns} matrix, must have rows (r, {columns}), coefficients "
            f"({rows} - r, r) and a permutation of {rows}, got {tuple(low_rank.rows.shape)}, "
            f"{tuple(low_rank.coefficients.shape)} and {len(low_rank.permutation)}"
        )
    device = matrix64.device
    by_inputs = input_triangle(inputs, columns, name, device)
    by_outputs = output_triangle(outputs, rows, name, device)
    # Rows of W in the order of [rows; coefficients @ rows].
    order = torch.tensor(low_rank.permutation, device=device).argsort()
    weights = by_outputs.moments[order[:, None], order]
    rounding = _Rounding(matrix64[order], by_inputs, weights, scheme, coefficient_scheme or scheme, name)
    factors = (part.detach().double() for part in (low_rank.rows, low_rank.coefficients))
    results = [next_round for _, next_round in zip(range(rounds), rounding.rounds(*factors), strict=False)]
    short_rows, coefficients, error = min(results, key=lambda result: result[2])
    return QuantizedInterpolation(short_rows, coefficients, low_rank.permutation, error)


class _Rounding:
    """The matrix and its moments in the order ``[rows; other rows]``, in float64."""

    def __init__(
        self, matrix: Tensor, inputs: Triangle, weights: Tensor, scheme: Scheme, coefficient_scheme: Scheme, name: str
    ) -> None:
        self._W, self._G, self._H = matrix, weights, inputs.moments
        self._inputs = inputs
        self._schemes = scheme, coefficient_scheme
        self._name = name
        self._squared_norm = self._squared(matrix)

    def _squared(self, error: Tensor) -> float:
        """``tr(G E H E^T)``, by products in float32."""
        error32 = error.float()
        weighted = (self._G.float() @ error32) @ self._H.float()
        return max(float((weighted.double() * error).sum()), 0.0)

    def rounds(self, R: Tensor, C: Tensor) -> Iterator[tuple[Quantized, Quantized | None, float]]:
        """Rounded rows, rounded coefficients and the relative error of each round."""
        rank = len(R)
        name = f"the rows of {self._name}", f"the coefficients of {self._name}"
        identity = torch.eye(rank, dtype=R.dtype, device=R.device)
        W, G = self._W, self._G
        # G_2^-1 G_21: what the others make up for of an error of the rows.
        others = Triangle.of(G[rank:, rank:], 0.0) if len(C) else None
        share = solve(others.moments, G[rank:, :rank]) if others is not None else None
        while True:
            L = torch.cat([identity, C])
            moments = L.T @ G @ L
            rows = two_sided(R, self._schemes[0], self._inputs, Triangle.of(moments, 0.0), name=name[0])
            R = rows.dequantized(torch.float64)
            coefficients = None
            if others is not None and share is not None:
                target = W[rank:] + share @ (W[:rank] - R)
                weighted = R @ self._H
                by_rows = Triangle.of(weighted @ R.T, _RIDGE)
                C = C + solve(by_rows.moments, weighted @ (target - C @ R).T).T
                coefficients = two_sided(C, self._schemes[1], by_rows, others, name=name[1])
                C = coefficients.dequantized(torch.float64)
            error = self._squared(W - torch.cat([R, C @ R]))
            yield rows, coefficients, math.sqrt(error / self._squared_norm) if self._squared_norm else 0.0
            L = torch.cat([identity, C])
            weighted = L.T @ G
            R = solve(weighted @ L, weighted @ W)
