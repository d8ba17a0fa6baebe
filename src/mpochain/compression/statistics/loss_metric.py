"""Predicted increase of the loss by any replacement of a layer's weight, to second order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpochain.compression.statistics.moments import Moments
from mpochain.errors import ArgumentError

__all__ = ["LossMetric", "inputs_of"]


def inputs_of(weight: Tensor, moments: Moments) -> Tensor:
    """Second moments ``(in, in)`` of a layer's inputs, which tall layers hold as activations.

    Raises:
        ArgumentError: they are missing.
    """
    inputs = moments.activations if weight.shape[0] > weight.shape[1] else moments.inputs
    if inputs is None:
        raise ArgumentError("the moments of the inputs are missing; name the layer in collect_moments(inputs=)")
    return inputs


@dataclass(frozen=True, eq=False)
class LossMetric:
    """Metric of the error of a weight ``W (out, in)``: an error ``E`` adds ``tr(G E H E^T) / 2`` to the loss.

    It is the Kronecker-factored Fisher information (K-FAC, arXiv 1503.05671) of the calibration, without damping.

    Attributes:
        inputs: ``H (in, in)``, second moments of the inputs.
        outputs: ``G (out, out)``, second moments of the gradients with respect to the outputs.
    """

    inputs: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, weight: Tensor, moments: Moments | None) -> LossMetric:
        """The metric of a layer; without moments half the squared norm.

        Raises:
            ArgumentError: the moments of one side are missing.

        Example:
            >>> metric = LossMetric.of(torch.ones(2, 3), None)
            >>> metric.error(torch.ones(2, 3))
            3.0
        """
        out, in_ = weight.shape
        if moments is None:
            return cls(*(torch.eye(size, device=weight.device) for size in (in_, out)))
        outputs = moments.output_gradients if out > in_ else moments.gradients
        if outputs is None:
            raise ArgumentError(
                "the moments of the gradients with respect to all outputs are missing; name the layer in "
                "collect_moments(outputs=), with a loss="
            )
        return cls(inputs_of(weight, moments), outputs)

    def error(self, difference: Tensor) -> float:
        """Predicted increase of the loss in nats per row, for the difference ``E (out, in)`` of the weights.

        The product is computed in the type of the moments, float32 or, where its range is too small, float64.
        """
        E = difference.to(self.inputs.dtype)
        if self.outputs.dtype != self.inputs.dtype:
            E = E.double()
        left, right = self.outputs.to(E.dtype) @ E, E @ self.inputs.to(E.dtype)
        return max(float((left * right).sum(dtype=torch.float64)), 0.0) / 2
