"""The calibration data of a whole model: gone through in as many passes as memory asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from mpochain.compression.methods import Method
from mpochain.compression.statistics.moments import Moments, collect_moments, moment_bytes
from mpochain.compression.statistics.sampled_loss import SampledLoss
from mpochain.errors import SpecError
from mpochain.nn.dense import dense_parameters

__all__ = ["batches_for", "chunks", "moments_for"]

# Moments of as many layers are kept at a time as fit into this share of the model's own bytes, but no less than the
# second number: the rest takes another pass over the data. A transformer needs .77 of its own bytes by this count, in
# which inputs that layers share are as many as the layers, and with those of wide layers too, for "search", 1.36.
_MOMENT_SHARE, _LEAST_MOMENT_BYTES = 0.4, 1 << 27

# Between two lines about the calibration.
_SECONDS = 20.0


def batches_for(
    calibration: Iterable[Any] | None, way: Method, method: str, log: Callable[[str], None]
) -> Iterable[Any]:
    """What was given as calibration data, which says now and then how far it has been gone through.

    Args:
        calibration: batches, see :func:`mpochain.compression.statistics.moments.run_batch`; None for none.
        way: what they are for.
        method: its name.
        log: told how far it has come.

    Raises:
        SpecError: data that is needed and missing, can be gone through only once, or is one batch and not several.
    """
    if calibration is None:
        if way.needs != "nothing":
            raise SpecError(
                f"method {method!r} needs calibration= batches; some thousand tokens of text like that the model is "
                'for, or choose method="svd", which needs none'
            )
        return ()
    if isinstance(calibration, Iterator):
        raise SpecError("calibration is gone through several times, and an iterator only once; give a list of batches")
    if isinstance(calibration, Tensor | Mapping | str):
        raise SpecError(f"calibration is a list of batches, got one {type(calibration).__name__}; put it into a list")
    return _Told(calibration, log)


class _Told:
    """Batches that say now and then how far they have come."""

    def __init__(self, batches: Iterable[Any], log: Callable[[str], None]) -> None:
        self._batches, self._log = batches, log

    def __iter__(self) -> Iterator[Any]:
        said = time.monotonic()
        for number, batch in enumerate(self._batches, 1):
            yield batch
            if time.monotonic() - said > _SECONDS:
                said = time.monotonic()
                self._log(f"calibration batch {number}")


def chunks(model: nn.Module, layers: Mapping[str, nn.Module], way: Method) -> Iterator[dict[str, nn.Module]]:
    """The layers in parts whose moments, in bytes, fit into a share of the model's own size together."""
    room = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) * _MOMENT_SHARE
    chunk: dict[str, nn.Module] = {}
    taken = 0
    for name, layer in layers.items():
        size = 0
        if way.needs != "nothing":
            both = _needing_inputs({name: layer}, way)
            size = moment_bytes({name: layer}, gradients=way.needs == "gradients", inputs=both)
        if chunk and taken + size > max(room, _LEAST_MOMENT_BYTES):
            yield chunk
            chunk, taken = {}, 0
        chunk[name] = layer
        taken += size
    yield chunk


def moments_for(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    way: Method,
    loss: Callable[[Any], Tensor] | None,
    seed: int,
) -> dict[str, Moments]:
    """What a method needs to know of these layers, by their names; nothing for one that needs no data.

    Args:
        model: runs over the batches.
        layers: dense layers of it.
        batches: see :func:`mpochain.compression.statistics.moments.run_batch`.
        way: the method.
        loss: see :func:`mpochain.compression.compress`.
        seed: of the labels that the model draws where no loss is given.
    """
    if way.needs == "nothing":
        return {}
    both = _needing_inputs(layers, way)
    if way.needs == "inputs":
        return collect_moments(model, layers, batches, inputs=both)
    return collect_moments(model, layers, batches, loss=loss or SampledLoss(seed), inputs=both)


def _needing_inputs(layers: Mapping[str, nn.Module], way: Method) -> set[str]:
    shapes = {name: dense_parameters(layer)[0].shape for name, layer in layers.items()}
    return {name for name, (out, in_) in shapes.items() if way.needs_inputs((out, in_))}
