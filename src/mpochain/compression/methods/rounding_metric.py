"""The metric in which the weights of a layer are rounded, and the one in which the result is judged."""

from __future__ import annotations

from mpochain.compression.statistics.damping import best_damped_fit
from mpochain.compression.statistics.loss_metric import LossMetric
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import Projections, fit
from mpochain.compression.target import Target
from mpochain.quantization import Triangle
from mpochain.quantization.triangle import OUTPUT_DAMPING, input_triangle

__all__ = ["RoundingMetric"]

# Best damping of rounding over that of low rank, see docs/decisions/0065; to try several roundings would take longer
# than all else.
_OVER_LOW_RANK = 3.0


class RoundingMetric:
    """The metric in which the weights of one layer are rounded, and the one in which the result is judged.

    Both are the same unless data were set aside. With them, errors are of data that rounding has not seen, and these
    data choose the dampings.

    Args:
        target: the dense layer.
        moments: its moments on both sides; None for equal weights.
        low_rank: whether :meth:`low_rank` will be asked for, so that the approximations by which the damping was chosen
            are kept until then.

    Attributes:
        judging: the metric of errors.

    Example:
        >>> from torch import nn
        >>> metric = RoundingMetric(Target.open("up", nn.Linear(8, 16)), None)
        >>> metric.damping, [len(triangle.moments) for triangle in metric.triangles()]
        (1.0, [8, 16])
    """

    def __init__(self, target: Target, moments: Moments | None, *, low_rank: bool = False) -> None:
        self._keeps_fit = low_rank
        self._target, self._moments = target, moments
        self._damping: float | None = None
        self._fit: Projections | None = None
        self._fitted = LossMetric.of(target.weight, moments)
        self.judging = LossMetric.of(target.weight, moments.judging) if moments is not None else self._fitted

    @property
    def judges_itself(self) -> bool:
        """Whether no data were set aside."""
        return self._moments is None or self._moments.held_out is None

    def low_rank(self) -> Projections:
        """Low-rank approximations of the weight, with the damping that loses least on data set aside."""
        damping = self._damping_of_low_rank()
        # Kept no longer than until here: those of all layers would take as much memory as the model.
        chosen, self._fit = self._fit, None
        return fit(self._target.weight, self._moments, damping=damping) if chosen is None else chosen

    def _damping_of_low_rank(self) -> float:
        """Share of their mean diagonal that is added to the moments of the gradients for low rank."""
        if self._damping is None:
            self._damping, chosen = best_damped_fit(self._target.weight, self._moments)
            self._fit = chosen if self._keeps_fit else None
        return self._damping

    @property
    def damping(self) -> float:
        """Share of their mean diagonal that is added to the moments of the outputs."""
        if self.judges_itself:
            return OUTPUT_DAMPING
        return _OVER_LOW_RANK * self._damping_of_low_rank()

    def triangles(self) -> tuple[Triangle, Triangle]:
        """Triangles of the inputs and of the outputs, along which rounding feeds its error back.

        They are several times as large as the moments, so they are made when needed and not kept with the choices.
        """
        name, inputs, outputs = self._target.name, self._fitted.inputs, self._fitted.outputs
        return (
            input_triangle(inputs, len(inputs), name),
            Triangle.of(outputs, self.damping, f"the weights of the outputs of {name}"),
        )
