"""Interpolative low rank, weighted by inputs and by gradients with respect to the outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.methods.method import Method, Needs
from mpochain.compression.statistics.damping import best_damped_fit
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import Errors, Projections, losses
from mpochain.compression.target import Target
from mpochain.decomposition import Interpolation, interpolative
from mpochain.nn import InterpolativeLinear

__all__ = ["Interpolative", "choices_of_projections", "index_bytes", "judged_fit", "smallest_low_rank"]


class Interpolative(Method):
    """Optimal weighted low rank in interpolative form; ``rank (out + in - rank)`` parameters, errors in nats per token.

    The budget goes to the layers where it reduces the loss most, as predicted to second order by the Kronecker-factored
    Fisher information (K-FAC, arXiv 1503.05671).

    Example:
        >>> import mpochain as mpo, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> report = mpo.compress(model, 0.5, calibration=[torch.randn(100, 32)], method=Interpolative())
        >>> report.method, report.parameters_after <= 0.5 * report.parameters_before
        ('interpolative', True)
    """

    needs: Needs = "gradients"
    sets_aside = True

    def smallest(self, target: Target) -> int:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return smallest_low_rank(target)

    def prepare(self, target: Target, moments: Moments | None) -> Choices:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        projections, increases = judged_fit(target.weight, moments)

        def errors(rank: int) -> Errors | None:
            return None if moments is None else projections.errors_of(target.weight, moments.judging, rank)

        unit = "nats per token" if moments is not None else "half the squared norm of the weight"
        return choices_of_projections(target, projections, increases, errors, unit)


def judged_fit(weight: Tensor, moments: Moments | None) -> tuple[Projections, NDArray[np.float64]]:
    """Low-rank approximations of a weight at all ranks, and the error of every rank from 0 on.

    Args:
        weight: ``(out, in)``.
        moments: moments of the layer; None for the plain SVD of the weight.

    Returns:
        The approximations, and ``(k + 1,)``: the predicted increase of the loss in nats per token, on data that were
        set aside if there are; without moments half the squared norm of the error.
    """
    _, projections = best_damped_fit(weight, moments)
    if moments is None or moments.judging is moments:
        # To second order, the loss grows by half the squared weighted error.
        return projections, projections.errors / 2
    return projections, losses(projections, weight, moments.judging)  # without any damping


def choices_of_projections(
    target: Target,
    projections: Projections,
    increases: NDArray[np.float64],
    errors: Callable[[int], Errors | None],
    unit: str,
) -> Choices:
    """Choices of all ranks whose interpolative form is smaller than the weight.

    Args:
        target: the dense layer.
        projections: its low-rank approximations.
        increases: error of every rank from 0 on.
        errors: errors of a rank, for the record of the layer.
        unit: unit of ``increases``.
    """
    out, in_ = target.shape
    ranks = np.arange(1, min(out, in_), dtype=np.int64)
    parameters = ranks * (out + in_ - ranks)
    costs = Costs.of(target, parameters, parameters, index_bytes=index_bytes(target))
    costs = costs[: int(np.searchsorted(costs.elements, target.parameters))]  # smaller than the matrix

    def build(choice: int) -> Built:
        rank = choice + 1
        short = interpolative(*projections.factors(target.weight, rank))
        rows, coefficients = (part.to(target.weight.dtype) for part in (short.rows, short.coefficients))
        layer = InterpolativeLinear.from_interpolation(
            Interpolation(rows, coefficients, short.permutation), target.bias
        )
        return Built(layer, errors(rank))

    return Choices.of(
        target,
        costs,
        increases[1 : len(costs) + 1],
        build,
        unit=unit,
        zero_error=float(increases[0]),
        held_bytes=projections.bytes,
    )


def index_bytes(target: Target) -> int:
    """Bytes of the output permutation that the interpolative form stores, four per output."""
    return 4 * target.shape[0]


def smallest_low_rank(target: Target) -> int:
    """Storage of the interpolative form of rank 1, or of the dense layer if that is smaller, in bytes."""
    out, in_ = target.shape
    one = Costs.of(target, [out + in_ - 1], [0], index_bytes=index_bytes(target))
    return min(int(one.bytes[0]), target.bytes)
