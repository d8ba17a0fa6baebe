"""Weighted low-rank approximation of a layer from its second moments, and the errors of an approximation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpochain.compression.statistics.moments import Moments
from mpochain.decomposition import WeightedLowRank, damped_low_rank, projected_low_rank, weighted_low_rank
from mpochain.errors import ArgumentError

__all__ = ["Errors", "Projections", "damped_fits", "errors_between", "fit", "losses", "weights_of"]

# This share of the inputs' mean power is added to the diagonal of their moments, so that directions absent from the
# data still count a little.
_RIDGE = 1e-8


@dataclass(frozen=True)
class Errors:
    """Errors of an approximation on the calibration data.

    Attributes:
        output: relative error of the outputs.
        loss: predicted increase of the loss, nats per row, to second order; None without gradients.
    """

    output: float
    loss: float | None


@dataclass(frozen=True, eq=False)
class Projections:
    """Projections that give the best approximation of a weight at every rank, stored without the weight.

    Rank ``r`` approximates ``W (out, in)`` by ``P W`` if ``out <= in`` and by ``W P^T`` otherwise, with ``P`` of rank
    ``r`` on the smaller side ``s``. All ``k`` ranks together take ``2 s k`` numbers instead of the ``k (out + in)`` of
    the factors of ``W``.

    Attributes:
        left: ``(s, k)``, float64; ``P`` of rank ``r`` is ``left[:, :r] @ right[:r]``.
        right: ``(k, s)``, float64.
        errors: ``(k + 1,)``, squared weighted error of each rank from 0 to ``k``.
    """

    left: Tensor
    right: Tensor
    errors: NDArray[np.float64]

    @classmethod
    def of(cls, approximation: WeightedLowRank) -> Projections:
        """Extract the projections of a :class:`mpochain.decomposition.WeightedLowRank` of a torch tensor."""
        left, right = approximation.basis
        return cls(left, right, approximation.errors)

    @property
    def bytes(self) -> int:
        """Memory held; ``right`` is not counted if it is a view of ``left``."""
        shared = self.left.untyped_storage().data_ptr() == self.right.untyped_storage().data_ptr()
        return sum(side.numel() * side.element_size() for side in ((self.left,) if shared else (self.left, self.right)))

    def factors(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Factors ``(out, rank)`` and ``(rank, in)`` of the best approximation, float64.

        Args:
            weight: ``W``, ``(out, in)``, the matrix that was fitted.
            rank: from 1 to ``k``.
        """
        weight64 = weight.detach().double()
        if _is_wide(weight):
            return self.left[:, :rank], self.right[:rank] @ weight64
        return weight64 @ self.right[:rank].T, self.left[:, :rank].T

    def errors_of(self, weight: Tensor, moments: Moments, rank: int) -> Errors:
        """Errors of the approximation of one rank on the calibration data, without damping."""
        weight64 = weight.detach().double()
        projection = self.left[:, :rank] @ self.right[:rank]
        identity = torch.eye(len(projection), dtype=torch.float64, device=weight64.device)
        residual = identity - projection
        activations = moments.activations.double()

        def lost(metric: Tensor, moments64: Tensor, part: Tensor) -> float:
            return max(float(((metric @ part @ moments64) * part).sum()), 0.0)

        if _is_wide(weight):
            output = lost(identity, activations, residual) / max(lost(identity, activations, identity), 1e-300)
        else:
            product = weight64.T @ weight64
            output = lost(activations, product, residual) / max(lost(activations, product, identity), 1e-300)
        loss = None
        if moments.gradients is not None:
            gradients = moments.gradients.double()
            pair = (gradients, activations) if _is_wide(weight) else (activations, gradients)
            loss = lost(*pair, residual) / 2
        return Errors(math.sqrt(output), loss)


def losses(projections: Projections, weight: Tensor, moments: Moments | None) -> NDArray[np.float64]:
    """Predicted increase of the loss at every rank from 0 on, without the damping of the fit; ``(k + 1,)``.

    The residual of rank ``r`` is ``I - P`` with ``P`` the sum of the first ``r`` terms, so all ranks follow from one
    product each of the two moments with the projections.

    Args:
        projections: of :func:`fit` with gradients.
        weight: ``W``, ``(out, in)``, the matrix that was fitted.
        moments: its moments, with gradients; None for those of a fit without data.
    """
    if moments is None or moments.gradients is None:
        return projections.errors / 2
    metric, moments64 = moments.gradients.double(), moments.activations.double()
    return _squares(projections, *((metric, moments64) if _is_wide(weight) else (moments64, metric))) / 2


def relative_output_errors(projections: Projections, weight: Tensor, moments: Moments) -> NDArray[np.float64]:
    """Relative error of the outputs at every rank from 0 on; ``(k + 1,)``.

    Args:
        projections: of :func:`fit`.
        weight: ``W``, ``(out, in)``, the matrix that was fitted.
        moments: its moments.
    """
    activations = moments.activations.double()
    if _is_wide(weight):
        metric, moments64 = torch.eye(len(activations), dtype=torch.float64, device=activations.device), activations
    else:
        weight64 = weight.detach().double()
        metric, moments64 = activations, weight64.T @ weight64
    squares = _squares(projections, metric, moments64)
    return np.sqrt(squares / max(float((metric * moments64).sum()), 1e-300))


def _squares(projections: Projections, metric: Tensor, moments64: Tensor) -> NDArray[np.float64]:
    """``tr((I - P)^T metric (I - P) moments)`` for the projection ``P`` of every rank from 0 on."""
    left, right = projections.left, projections.right
    linear = ((right @ moments64 @ metric) * left.T).sum(1).cumsum(0)
    quadratic = ((left.T @ metric @ left) * (right @ moments64 @ right.T)).cumsum(0).cumsum(1).diagonal()
    total = (metric * moments64).sum()
    kept = torch.cat([torch.zeros(1, dtype=linear.dtype, device=linear.device), quadratic - 2 * linear])
    return np.maximum(np.asarray((total + kept).cpu()), 0.0)


def fit(weight: Tensor, moments: Moments | None, *, damping: float | None = None) -> Projections:
    """Compute the best approximations of a weight at all ranks, weighted by the moments of its layer.

    Args:
        weight: ``(out, in)``.
        moments: moments of the layer; None for the plain SVD of the weight.
        damping: None to weight all outputs equally. Otherwise outputs are weighted by their gradients, and this share
            of the gradients' mean power is added to their moments: with few tokens, a zero gradient does not prove
            that an output is unimportant.

    Returns:
        Projections, whose squared errors are those of the weight if ``moments`` is None, those of the outputs per row
        if ``damping`` is None, and otherwise twice the increase of the loss per row.
    """
    if moments is None:
        return Projections.of(weighted_low_rank(weight))
    if damping is not None and moments.gradients is not None:
        return next(damped_fits(weight, moments, [damping]))
    inputs, weight64 = _inputs_on_the_smaller_side(weight, moments), weight.detach().double()
    metric, moments64 = (None, inputs) if _is_wide(weight) else (inputs, weight64.T @ weight64)
    return Projections.of(projected_low_rank(weight, metric, moments64))


def damped_fits(weight: Tensor, moments: Moments, dampings: Sequence[float]) -> Iterator[Projections]:
    """:func:`fit` with several dampings, which share half of the work.

    Args:
        weight: ``(out, in)``.
        moments: moments of the layer, with gradients.
        dampings: see :func:`fit`.
    """
    assert moments.gradients is not None
    assert moments.gradient_power is not None
    inputs, outputs = _inputs_on_the_smaller_side(weight, moments), moments.gradients.double()
    pair = (outputs, inputs) if _is_wide(weight) else (inputs, outputs)
    yield from map(
        Projections.of,
        damped_low_rank(weight, *pair, [damping * moments.gradient_power for damping in dampings]),
    )


def weights_of(moments: Moments, *, damping: float) -> tuple[Tensor, Tensor | None]:
    """Weights ``H`` of the inputs and ``G`` of the outputs as in :func:`fit`, float64; ``G`` needs ``out <= in``."""
    inputs = _inputs(moments)
    H = inputs + _RIDGE * moments.input_power * torch.eye(len(inputs), dtype=torch.float64, device=inputs.device)
    if moments.gradients is None or moments.gradient_power is None:
        return H, None
    G = moments.gradients.double()
    return H, G + damping * moments.gradient_power * torch.eye(len(G), dtype=torch.float64, device=G.device)


def errors_between(weight: Tensor, moments: Moments, other: Tensor) -> Errors:
    """Errors of another matrix in place of a layer's weight on the calibration data, without damping.

    The loss is None if ``out > in`` and the moments of the gradients were not collected in full: then
    ``moments.gradients`` are those of the inputs, of no use for another matrix.

    Args:
        weight: ``(out, in)``.
        moments: moments of the layer, including the inputs.
        other: ``(out, in)``.

    Raises:
        ArgumentError: ``moments`` has no moments of the inputs.
    """
    weight64 = weight.detach().double()
    difference = weight64 - other.detach().double()
    inputs = _inputs(moments)
    weighted = difference @ inputs
    output = float((weighted * difference).sum()) / max(float(((weight64 @ inputs) * weight64).sum()), 1e-300)
    gradients = moments.gradients if _is_wide(weight) else moments.output_gradients
    loss = None
    if gradients is not None:
        loss = max(float(((gradients.double() @ weighted) * difference).sum()), 0.0) / 2
    return Errors(math.sqrt(max(output, 0.0)), loss)


def _inputs(moments: Moments) -> Tensor:
    if moments.inputs is None:
        raise ArgumentError("the moments of the inputs are missing; name the layer in collect_moments(inputs=)")
    return moments.inputs.double()


def _is_wide(weight: Tensor) -> bool:
    return bool(weight.shape[0] <= weight.shape[1])


def _inputs_on_the_smaller_side(weight: Tensor, moments: Moments) -> Tensor:
    """``W H W^T`` if ``out <= in``, otherwise ``H``, both with the ridge of ``H``, float64."""
    weight64, activations = weight.detach().double(), moments.activations.double()
    ridge = _RIDGE * moments.input_power
    if _is_wide(weight):
        return activations + ridge * weight64 @ weight64.T
    return activations + ridge * torch.eye(len(activations), dtype=torch.float64, device=activations.device)
