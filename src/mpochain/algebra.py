"""Matrix algebra of chains: products, sums and multiples, with bounds of their errors."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Self

from mpochain.arrays import Array, ldexp, namespace, promoted
from mpochain.decomposition import direct_product, direct_sum, held, multiplied
from mpochain.errors import ShapeError, SpecError
from mpochain.spec import ChainSpec

__all__ = ["ChainAlgebra"]


class ChainAlgebra:
    """The operators of :class:`mpochain.MPOChain`, for chains, arrays of the same library and numbers.

    Attributes:
        cores: arrays of shape ``(r_left, out, in, r_right)``.
        spec: spec of the cores.
        relative_error: see :class:`mpochain.MPOChain`.
        error_is_bound: see :class:`mpochain.MPOChain`.
    """

    cores: tuple[Array, ...]
    spec: ChainSpec
    relative_error: float
    error_is_bound: bool

    # NumPy then leaves ``matrix @ chain`` and ``number * chain`` to this class.
    __array_ufunc__ = None

    @classmethod
    @abstractmethod
    def from_cores(cls, cores: Iterable[Array], spec: ChainSpec | None = None) -> Self:
        """A chain with these cores."""

    @property
    @abstractmethod
    def T(self) -> Self:  # noqa: N802  # the name matrices have in every array library
        """The chain of the transposed matrix."""

    @abstractmethod
    def apply(self, x: Array) -> Array:
        """``x @ W^T``."""

    @abstractmethod
    def _changed(self, **changes: Any) -> Self:
        """A copy with some attributes changed."""

    @abstractmethod
    def _unit_norm(self) -> tuple[float, int]:
        """Frobenius norm of the matrix as a number and a power of two."""

    def __matmul__(self, other: Any) -> Any:
        """``W @ other``: a vector ``(in,)``, a matrix ``(in, n)``, a stack of matrices ``(..., in, n)``, or a chain.

        The product of two chains is a chain, whose bonds are the products of theirs, reduced to the attainable maximum.

        Raises:
            ShapeError: the rows of ``other`` are not the ``in_features`` of this chain.
            SpecError: a chain whose ``out_dims`` are not the ``in_dims`` of this chain.

        Example:
            >>> import numpy as np
            >>> from mpochain import ChainSpec, MPOChain
            >>> chain = MPOChain.from_matrix(np.diag(np.arange(4.0)), ChainSpec((2, 2), (2, 2)))
            >>> np.round(chain @ np.ones(4), 9) + 0.0
            array([0., 1., 2., 3.])
            >>> np.round((chain @ chain).to_matrix().diagonal(), 9) + 0.0
            array([0., 1., 4., 9.])
        """
        if isinstance(other, ChainAlgebra):
            return self._times_chain(other)
        if not hasattr(other, "ndim") or not hasattr(other, "shape"):
            return NotImplemented
        namespace(other, *self.cores)
        rows = other.shape[-2:][0] if other.ndim else None
        if rows != self.spec.in_features:
            raise ShapeError(
                f"chain @ M needs a vector or matrix M of {self.spec.in_features} rows, got shape "
                f"{tuple(other.shape)}; chain.apply(x) maps rows x (..., {self.spec.in_features})"
            )
        if other.ndim == 1:
            return self.apply(other)
        xp = namespace(other)
        return xp.matrix_transpose(self.apply(xp.matrix_transpose(other)))

    def __rmatmul__(self, other: Any) -> Any:
        """``other @ W``: a vector ``(out,)`` or matrices ``(..., n, out)``.

        Raises:
            ShapeError: the last axis of ``other`` is not ``out_features``.
        """
        if not hasattr(other, "ndim") or not hasattr(other, "shape"):
            return NotImplemented
        namespace(other, *self.cores)
        if not other.ndim or other.shape[-1] != self.spec.out_features:
            raise ShapeError(
                f"M @ chain needs a vector or matrix M of {self.spec.out_features} columns, got shape "
                f"{tuple(other.shape)}"
            )
        return self.T.apply(other)

    def _times_chain(self, other: Self) -> Self:
        a, b = self.spec, other.spec
        if a.in_features != b.out_features:
            raise ShapeError(
                f"a {a.shape[0]}x{a.shape[1]} chain cannot be multiplied with a {b.shape[0]}x{b.shape[1]} chain; the "
                f"second needs {a.in_features} rows"
            )
        if a.in_dims != b.out_dims:
            raise SpecError(
                f"the product of two chains needs equal inner dims, got in_dims {a.in_dims} and out_dims {b.out_dims}; "
                "decompose one matrix with the dims of the other, or multiply with to_matrix()"
            )
        first, second = ([promoted(core, "core") for core in chain.cores] for chain in (self, other))
        cores = direct_product(first, second, a.in_features)
        spec = ChainSpec(a.out_dims, b.in_dims, out_features=a.out_features, in_features=b.in_features)
        product = self.from_cores(held(cores, self.cores[0]), spec)
        a_lost, b_lost = self._lost_share(), other._lost_share()
        if not a_lost and not b_lost:
            return product
        (a_norm, a_power), (b_norm, b_power) = self._unit_norm(), other._unit_norm()
        return product._bounded((a_lost + b_lost + a_lost * b_lost) * a_norm * b_norm, a_power + b_power)

    def __add__(self, other: Self) -> Self:
        """The chain of the sum of both matrices; bonds add up, and are reduced to the attainable maximum.

        Raises:
            SpecError: the chains have different dims; keep such a sum as a tuple of chains.
        """
        if not isinstance(other, ChainAlgebra):
            return NotImplemented
        a, b = self.spec, other.spec
        if (a.out_dims, a.in_dims, a.shape) != (b.out_dims, b.in_dims, b.shape):
            raise SpecError(
                f"only chains with equal dims add up to one chain, got {a} and {b}; keep others as a tuple of terms"
            )
        total = self.from_cores(direct_sum(self.cores, other.cores), a)
        shares = self._lost_share(), other._lost_share()
        if not any(shares):
            return total
        (a_norm, a_power), (b_norm, b_power) = self._unit_norm(), other._unit_norm()
        power = max(a_power, b_power)
        lost = ldexp(shares[0] * a_norm, a_power - power) + ldexp(shares[1] * b_norm, b_power - power)
        return total._bounded(lost, power)

    def __mul__(self, factor: Any) -> Self:
        """The chain of the matrix times a number, which scales the first core.

        If the first core would leave the range of its element type, all cores are scaled.
        """
        if not isinstance(factor, (int, float)) and getattr(factor, "ndim", None) != 0:
            return NotImplemented
        return self._changed(cores=tuple(held(multiplied(self.cores, factor), self.cores[0])))

    __rmul__ = __mul__

    def __neg__(self) -> Self:
        return self * -1.0

    def __sub__(self, other: Self) -> Self:
        return self + (-other)

    def _lost_share(self) -> float:
        """Upper bound of ``||before - chain|| / ||chain||``, from the error relative to ``||before||``."""
        return self.relative_error / (1.0 - self.relative_error) if self.relative_error < 1.0 else math.inf

    def _bounded(self, lost: float, exponent: int) -> Self:
        """The chain with a bound of its relative error, if ``||before - chain||`` is at most ``lost * 2**exponent``."""
        size, power = self._unit_norm()
        # ``||before||`` is at least the norm of this chain less what was lost.
        before = ldexp(size, power - exponent) - lost
        bound = lost / before if before > 0 and math.isfinite(lost) else math.inf
        return self._changed(relative_error=bound, error_is_bound=True)
