"""Triangular factors of second moments, along which rounding feeds its error back.

Let ``e`` be the error of a vector and ``M`` the second moments that weight it. With ``M = L^T L`` and ``L`` lower
triangular, ``e^T M e = sum_k L_kk^2 (e_k + sum_{l<k} B_kl e_l)^2``, where ``B`` is ``L`` with its rows divided by their
diagonal entries. Term ``k`` holds the entries up to ``k`` alone. If each term is made as small as the entries before it
allow, ``w_k + sum_{l<k} B_kl e_l`` is rounded: this is Babai's nearest-plane algorithm, and along the inputs of a layer
it is GPTQ (arXiv 2210.17323).

What is rounded first has its error compensated by what follows, so entries of most weight come first. Columns stay
within their group, and groups are rounded one after another, so the order is not stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mpochain.decomposition.weighted import symmetric_moments
from mpochain.errors import ArgumentError, DTypeError, ShapeError
from mpochain.linalg import cholesky
from mpochain.wording import kind_of

__all__ = [
    "INPUT_DAMPING",
    "OUTPUT_DAMPING",
    "InputFactor",
    "OutputFactor",
    "Triangle",
    "input_triangle",
    "output_triangle",
]

INPUT_DAMPING = 0.01
"""Share of the mean diagonal that is added to the moments of the inputs."""

OUTPUT_DAMPING = 1.0
"""Share of the mean diagonal that is added to those of the gradients with respect to the outputs: with less, the errors
of rounding concentrate where the few gradients of a calibration happen to be small."""


@dataclass(frozen=True, eq=False)
class InputFactor:
    """Triangular factor of the moments of the inputs, for columns in the order of rounding.

    Attributes:
        groups: indices of the columns of each group, in that order.
        order: ``(n,)``, the same indices in one.
        inverse: ``B^-1 (n, n)``, unit lower triangular, float32.
        terms: ``(n,)``, the weights ``L_kk^2`` of the terms of the squared error, float32.
    """

    groups: tuple[Tensor, ...]
    order: Tensor
    inverse: Tensor
    terms: Tensor


@dataclass(frozen=True, eq=False)
class OutputFactor:
    """Triangular factor of the weights of the outputs, for rows in the order of rounding.

    Attributes:
        order: ``(n,)``, indices of the rows.
        unit: ``B (n, n)``, unit lower triangular, float32.
    """

    order: Tensor
    unit: Tensor


@dataclass(frozen=True, eq=False)
class Triangle:
    """Damped second moments ``M (n, n)`` and their triangular factors, each computed once for several roundings.

    Attributes:
        moments: ``M`` with its damping, float64, up to a factor.
    """

    moments: Tensor
    _of_inputs: dict[int, InputFactor] = field(default_factory=dict, init=False, repr=False)
    _of_outputs: list[OutputFactor] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def of(cls, moments: Tensor, damping: float, name: str = "the moments") -> Triangle:
        """Damp second moments, of any float type and up to a factor.

        Args:
            moments: ``(n, n)``, symmetric and positive semidefinite. Zero moments stand for equal weights.
            damping: share of the mean diagonal that is added to the diagonal.
            name: name of the moments in errors.

        Raises:
            ArgumentError: a negative damping.
            ShapeError: moments that are not square.
            DTypeError: elements that are not floats.
            NonFiniteError: NaN or infinite entries, or a negative trace.

        Example:
            >>> Triangle.of(torch.ones(2, 2), damping=0.5).moments
            tensor([[1.5000, 1.0000],
                    [1.0000, 1.5000]], dtype=torch.float64)
        """
        if not damping >= 0.0:
            raise ArgumentError(f"the damping of {name} must be a number of at least 0, got {damping!r}")
        size = moments.shape[0] if moments.ndim else 0
        damped, _ = symmetric_moments(moments, size, damping, moments, name)
        assert damped is not None
        if not bool(damped.diagonal().any()):
            damped = torch.eye(size, dtype=damped.dtype, device=damped.device)
        return cls(damped)

    def of_inputs(self, group: int) -> InputFactor:
        """Factor for columns in groups of a size."""
        if group not in self._of_inputs:
            weights = self.moments.diagonal()
            pieces = torch.arange(len(weights), device=weights.device).split(group)
            sums = torch.stack([weights[piece].sum() for piece in pieces])
            groups = tuple(pieces[g][_descending(weights[pieces[g]])] for g in _descending(sums).tolist())
            order = torch.cat(groups)
            unit, terms = _factor(self.moments[order[:, None], order])
            identity = torch.eye(len(order), dtype=unit.dtype, device=unit.device)
            inverse = torch.linalg.solve_triangular(unit, identity, upper=False, unitriangular=True)
            self._of_inputs[group] = InputFactor(groups, order, inverse.float(), terms.float())
        return self._of_inputs[group]

    def of_outputs(self) -> OutputFactor:
        """Factor for rows."""
        if not self._of_outputs:
            order = _descending(self.moments.diagonal())
            unit, _ = _factor(self.moments[order[:, None], order])
            self._of_outputs.append(OutputFactor(order, unit.float()))
        return self._of_outputs[0]


def input_triangle(
    inputs: Tensor | Triangle | None, size: int, name: str, device: torch.device | None = None
) -> Triangle:
    """The triangle of the moments of a matrix's inputs, with the damping of inputs unless it is already one."""
    return _triangle(inputs, INPUT_DAMPING, size, f"the moments of the inputs of {name}", device)


def output_triangle(
    outputs: Tensor | Triangle | None, size: int, name: str, device: torch.device | None = None
) -> Triangle:
    """The triangle of the weights of a matrix's outputs, with the damping of outputs unless it is already one."""
    return _triangle(outputs, OUTPUT_DAMPING, size, f"the weights of the outputs of {name}", device)


def _triangle(
    moments: Tensor | Triangle | None, damping: float, size: int, name: str, device: torch.device | None
) -> Triangle:
    if moments is None:
        return Triangle.of(torch.eye(size, dtype=torch.float64, device=device), 0.0)
    if not isinstance(moments, Tensor | Triangle):
        raise DTypeError(f"{name} must be a torch tensor or a Triangle, got {kind_of(moments)}")
    shape = tuple((moments.moments if isinstance(moments, Triangle) else moments).shape)
    if shape != (size, size):
        raise ShapeError(f"{name} must be of shape ({size}, {size}), got {shape}")
    return moments if isinstance(moments, Triangle) else Triangle.of(moments, damping, name)


def _descending(weights: Tensor) -> Tensor:
    return weights.argsort(descending=True, stable=True)


def _factor(moments: Tensor) -> tuple[Tensor, Tensor]:
    """``B`` and the squared diagonal of ``L``."""
    # The flipped factor of the flipped matrix is upper triangular.
    lower = cholesky(moments.flip(0, 1)).flip(0, 1).T
    sizes = lower.diagonal()
    return lower / sizes[:, None], sizes.square()
