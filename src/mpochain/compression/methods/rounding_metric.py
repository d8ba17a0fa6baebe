"""The metric in which the weights of a layer are rounded, and the one in which the result is judged."""

from __future__ import annotations

from functools import cached_property

from mpochain.compression.statistics.damping import best_damping
from mpochain.compression.statistics.loss_metric import LossMetric
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.target import Target
from mpochain.quantization import Scheme, Triangle, two_sided
from mpochain.quantization.triangle import OUTPUT_DAMPING, input_triangle

__all__ = ["RoundingMetric"]

_OFFERED = (0.1, 0.3, 1.0, 3.0)

# The dense weight in this scheme decides on the damping.
_JUDGED_IN = Scheme(3, 128)


class RoundingMetric:
    """The metric in which the weights of one layer are rounded, and the one in which the result is judged.

    Both are the same unless data were set aside. With them, errors are of data that rounding has not seen, and the
    damping of the outputs is the one that loses least on these.

    Args:
        target: the dense layer.
        moments: its moments on both sides; None for equal weights.

    Attributes:
        judging: the metric of errors.

    Example:
        >>> from torch import nn
        >>> metric = RoundingMetric(Target.open("up", nn.Linear(8, 16)), None)
        >>> metric.damping, [len(triangle.moments) for triangle in metric.triangles()]
        (1.0, [8, 16])
    """

    def __init__(self, target: Target, moments: Moments | None) -> None:
        self._target = target
        self._fitted = LossMetric.of(target.weight, moments)
        self._apart = moments is not None and moments.held_out is not None
        self.judging = LossMetric.of(target.weight, moments.judging) if moments is not None else self._fitted

    @cached_property
    def damping(self) -> float:
        """Share of their mean diagonal that is added to the moments of the outputs."""
        if not self._apart:
            return OUTPUT_DAMPING
        inputs, weight = self._inputs(), self._target.weight

        def loss(damping: float) -> float:
            short = two_sided(weight, _JUDGED_IN, inputs, self._outputs(damping), name=self._target.name)
            return self.judging.error(weight - short.dequantized(weight.dtype))

        return best_damping(_OFFERED, loss)

    def triangles(self) -> tuple[Triangle, Triangle]:
        """Triangles of the inputs and of the outputs, along which rounding feeds its error back.

        They are several times as large as the moments, so they are made when needed and not kept with the choices.
        """
        return self._inputs(), self._outputs(self.damping)

    def _inputs(self) -> Triangle:
        inputs = self._fitted.inputs
        return input_triangle(inputs, len(inputs), self._target.name)

    def _outputs(self, damping: float) -> Triangle:
        return Triangle.of(self._fitted.outputs, damping, f"the weights of the outputs of {self._target.name}")
