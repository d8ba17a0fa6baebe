"""Second moments of layers on calibration data, as :func:`mpochain.compress` collects them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from mpochain.compression.statistics.collection import collect
from mpochain.compression.statistics.moments import Moments
from mpochain.errors import MPOError

__all__ = ["collect_moments"]


def collect_moments(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    inputs: Collection[str] = (),
    outputs: Collection[str] = (),
) -> dict[str, Moments]:
    """Run a model over calibration batches and collect the second moments of its layers.

    The model runs in evaluation mode, on copies of the batches, and is returned to its former mode. Parameters and
    their gradients stay unchanged. Positions that a mask among the arguments leaves out do not count, see
    ``mpochain.surgery.masks.Masks``.

    Args:
        model: model to run, on its own device.
        layers: dense layers of the model, by name.
        batches: tensors, tuples of arguments or mappings of keyword arguments, see :func:`mpochain.compress`.
        loss: function from the model's output to a scalar summed over tokens; None to collect no gradients.
        inputs: names of the layers whose moments of the inputs are collected even if the inputs are the larger side.
        outputs: names of the layers whose moments of the gradients with respect to the outputs are collected in full
            even if the outputs are the larger side.

    Raises:
        ArgumentError: there are no batches, a batch has another type, all positions are masked, or the loss is no
            scalar.
        NonFiniteError: the loss, activations or gradients are NaN or infinite; the message names the first such layer.
        MPOError: no batch or no gradient reached a layer.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> moments = collect_moments(model, {"2": model[2]}, [torch.ones(5, 4)])
        >>> moments["2"].rows, moments["2"].activations.shape  # of its two outputs
        (5, torch.Size([2, 2]))
    """
    collected = collect(model, layers, batches, loss=loss, inputs=inputs, outputs=outputs)
    for name, reason in collected.unreached.items():
        raise MPOError(f"{name} has no moments: {reason}; leave it out, or give other data or another loss=")
    return collected.moments
