"""Block tensor trains (Monarch at bond 1), of the weight alone or weighted by inputs and gradients."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.methods.method import Method, MethodSettings
from mpochain.compression.statistics.damping import DAMPING
from mpochain.compression.statistics.loss_metric import LossMetric
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import Errors, errors_between
from mpochain.compression.target import Target
from mpochain.decomposition import refitted_tiles, tiles_of
from mpochain.nn import BlockTrainLinear
from mpochain.nn.block_train import block_train_dims, block_train_parameters

__all__ = ["BlockTrain"]

# Share of their mean diagonal that is added to the moments of the inputs, so that every block has an inverse.
_RIDGE = 1e-4

_Floats = NDArray[np.float64]


class BlockTrain(Method):
    """Block tensor train with balanced dims: all tiles of a weight get the same rank, and layers what they need.

    With data, every tile is fitted in the metric of its inputs and of the gradients of its outputs, and the second
    factor is then fitted once more to all inputs together. Source of the form: arXiv 2406.06248.

    Args:
        settings: see :class:`BlockTrain.Settings`.
        values: fields of the settings.

    Example:
        >>> import mpochain as mpo
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64))
        >>> report = mpo.compress(model, 0.5, method=BlockTrain(calibrated=False))
        >>> report.method, model[0].bond, report.parameters_after
        ('monarch', 2, 2048)
    """

    class Settings(MethodSettings):
        """Settings of :class:`BlockTrain`."""

        calibrated: bool = Field(
            True, description="minimise the predicted loss, which needs data, instead of the weight's error"
        )

    settings: Settings

    def __init__(self, settings: Settings | None = None, /, **values: object) -> None:
        super().__init__(settings, **values)
        calibrated = self.settings.calibrated
        self.name = "block_train" if calibrated else "monarch"
        self.needs = "gradients" if calibrated else "nothing"
        self.uniform = not calibrated

    def needs_inputs(self, shape: tuple[int, int]) -> bool:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return self.settings.calibrated

    def needs_outputs(self, shape: tuple[int, int]) -> bool:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return self.settings.calibrated

    def smallest(self, target: Target) -> int:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        out_dims, in_dims = map(block_train_dims, target.shape)
        return min(block_train_parameters(out_dims, in_dims, 1), target.parameters) * target.element_size

    def prepare(self, target: Target, moments: Moments | None) -> Choices:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        out_dims, in_dims = map(block_train_dims, target.shape)
        most = min(out_dims[1], in_dims[1])
        bonds = np.arange(1, most + 1, dtype=np.int64)
        parameters = bonds * block_train_parameters(out_dims, in_dims, 1)
        bonds, parameters = (values[parameters < target.parameters] for values in (bonds, parameters))
        weight = np.asarray(target.weight.detach().double().cpu())
        metric = LossMetric.of(target.weight, moments) if moments is not None else None
        inputs = None if metric is None else _damped(metric.inputs, _RIDGE)
        outputs = None if metric is None else _damped(metric.outputs, DAMPING)
        tiles = tiles_of(weight, out_dims, in_dims, inputs=inputs, outputs=outputs)

        def build(choice: int) -> Built:
            first, second = tiles.factors(int(bonds[choice]))
            candidates = [second] if inputs is None else [second, refitted_tiles(weight, first, second, inputs)]
            layers = [
                BlockTrainLinear.from_factors(_like(first, target.weight), _like(other, target.weight), target.bias)
                for other in candidates
            ]
            if metric is None or moments is None:
                return Built(layers[0])
            dense = target.weight.detach()
            lost = [metric.error(dense - layer.weight.detach()) for layer in layers]
            best = int(np.argmin(lost))
            errors = errors_between(dense, moments, layers[best].weight.detach())
            return Built(layers[best], Errors(errors.output, lost[best]))

        return Choices.of(
            target,
            Costs.of(target, parameters, parameters),
            tiles.errors[bonds] / 2 if metric is not None else tiles.errors[bonds],
            build,
            unit="nats per token" if metric is not None else "squared norm of the weight",
            zero_error=float(tiles.errors[0]) / (2 if metric is not None else 1),
            held_bytes=tiles.left.nbytes + tiles.right.nbytes,
        )


def _damped(moments: torch.Tensor, share: float) -> _Floats:
    """Moments with a share of their mean diagonal added, float64."""
    matrix = np.asarray(moments.double().cpu())
    mean = max(float(np.trace(matrix)) / len(matrix), np.finfo(np.float64).tiny)
    return matrix + share * mean * np.eye(len(matrix))


def _like(factor: _Floats, weight: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(factor)).to(weight)
