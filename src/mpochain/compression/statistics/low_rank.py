"""The best low-rank approximations of a layer by its moments, and by these how near any other is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mpochain.compression.statistics.moments import Moments
from mpochain.decomposition import WeightedLowRank, projected_low_rank
from mpochain.errors import SpecError

__all__ = ["Errors", "errors_between", "errors_of", "fit", "weights_of"]

# Of the mean power of the inputs, added to their moments: directions the data never met still count for a little.
_RIDGE = 1e-8


@dataclass(frozen=True)
class Errors:
    """What an approximation leaves out.

    Attributes:
        output: relative error of the outputs on the calibration data.
        loss: by how much it should raise the loss, nats per row, to second order; None without gradients.
    """

    output: float
    loss: float | None


def fit(weight: Tensor, moments: Moments, *, damping: float | None) -> WeightedLowRank:
    """Every rank at once.

    Args:
        weight: ``(out, in)``.
        moments: of the layer.
        damping: None to weigh all outputs alike; otherwise they are weighed by their gradients, to whose moments this
            share of their mean power is added: how far few tokens are trusted to say which outputs do not matter.

    Returns:
        Squared errors are those of the outputs per row, or, with gradients, twice the rise of the loss per row.
    """
    inputs, outputs = _sides(weight, moments, damping)
    metric, seen = (outputs, inputs) if _is_wide(weight) else (inputs, outputs)
    assert seen is not None
    return projected_low_rank(weight, metric, seen)


def errors_of(weight: Tensor, moments: Moments, approximation: WeightedLowRank, rank: int) -> Errors:
    """What rank ``rank`` leaves out, without damping."""
    wide = weight.detach().double()
    projection = approximation.projection(rank)
    whole = torch.eye(len(projection), dtype=torch.float64, device=wide.device)
    rest = whole - projection
    activations = moments.activations.double()

    def lost(metric: Tensor, seen: Tensor, part: Tensor) -> float:
        return max(float(((metric @ part @ seen) * part).sum()), 0.0)

    if _is_wide(weight):
        output = lost(whole, activations, rest) / max(lost(whole, activations, whole), 1e-300)
    else:
        product = wide.T @ wide
        output = lost(activations, product, rest) / max(lost(activations, product, whole), 1e-300)
    loss = None
    if moments.gradients is not None:
        gradients = moments.gradients.double()
        pair = (gradients, activations) if _is_wide(weight) else (activations, gradients)
        loss = lost(*pair, rest) / 2
    return Errors(math.sqrt(output), loss)


def weights_of(moments: Moments, *, damping: float) -> tuple[Tensor, Tensor | None]:
    """``H`` of the inputs and ``G`` of the outputs of a wide layer, as :func:`fit` has them, in float64."""
    inputs = _inputs(moments)
    H = inputs + _RIDGE * moments.input_power * torch.eye(len(inputs), dtype=torch.float64, device=inputs.device)
    if moments.gradients is None or moments.gradient_power is None:
        return H, None
    G = moments.gradients.double()
    return H, G + damping * moments.gradient_power * torch.eye(len(G), dtype=torch.float64, device=G.device)


def errors_between(weight: Tensor, moments: Moments, other: Tensor) -> Errors:
    """What any other matrix leaves out of a wide layer, without damping; needs the moments of the inputs."""
    wide = weight.detach().double()
    difference = wide - other.detach().double()
    inputs = _inputs(moments)
    pushed = difference @ inputs
    output = float((pushed * difference).sum()) / max(float(((wide @ inputs) * wide).sum()), 1e-300)
    loss = None
    if moments.gradients is not None:
        loss = max(float(((moments.gradients.double() @ pushed) * difference).sum()), 0.0) / 2
    return Errors(math.sqrt(max(output, 0.0)), loss)


def _inputs(moments: Moments) -> Tensor:
    if moments.inputs is None:
        raise SpecError("these moments are of the smaller side alone; collect_moments(inputs=) keeps both")
    return moments.inputs.double()


def _is_wide(weight: Tensor) -> bool:
    return bool(weight.shape[0] <= weight.shape[1])


def _sides(weight: Tensor, moments: Moments, damping: float | None) -> tuple[Tensor, Tensor | None]:
    """What the inputs and the outputs are weighed by, both on the smaller side."""
    wide = weight.detach().double()
    ridge = _RIDGE * moments.input_power
    weighed = damping is not None and moments.gradients is not None and moments.gradient_power is not None
    gradients = moments.gradients.double() if weighed and moments.gradients is not None else None
    extra = (damping or 0.0) * (moments.gradient_power or 0.0)
    whole = torch.eye(min(wide.shape), dtype=torch.float64, device=wide.device)
    activations = moments.activations.double()
    if _is_wide(weight):
        return activations + ridge * wide @ wide.T, None if gradients is None else gradients + extra * whole
    product = wide.T @ wide
    return activations + ridge * whole, product if gradients is None else gradients + extra * product
