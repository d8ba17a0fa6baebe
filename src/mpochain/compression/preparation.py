"""Choices of all layers of a model: each fitted once, or again where memory is short."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from torch import Tensor

from mpochain.compression.allocation import Curve
from mpochain.compression.choices import Choices
from mpochain.compression.methods import Method
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.store import MomentStore
from mpochain.compression.target import Target

__all__ = ["Preparation"]


class Preparation:
    """Prepares every layer once for its curve, and keeps the fits until the layers are built.

    A fit of low rank takes about as much memory as its layer. Fits are kept in the order of the layers while they,
    with moments in memory, fit into ``room``; the layers beyond are fitted a second time when they are built, with the
    same result. Layers are prepared after the last pass over the data, when its activations are gone, and a fit is
    freed as soon as its layer is taken for building. So fits take the place of activations first and of compressed
    layers later, and raise the peak of a compression by at most ``room``, and only where the data take less than that:
    from 461 to between 461 and 476 MiB for a model of 63 MiB with a room of 25 MiB.

    Args:
        method: fits the layers.
        targets: dense layers by name.
        moments: statistics of the layers, complete.
        room: bytes for fits and for moments in memory, see
            :func:`mpochain.compression.statistics.passes.memory_for_statistics`.
    """

    def __init__(self, method: Method, targets: Mapping[str, Target], moments: MomentStore, room: int) -> None:
        self._method, self._targets, self._moments = method, targets, moments
        self._room = room - moments.bytes_in_memory
        self._held: dict[str, Choices] = {}

    def curves(self) -> dict[str, Curve]:
        """Costs and errors of the choices of every layer."""
        curves = {}
        for name, target in self._targets.items():
            moments = self._moments.get(name)
            choices = self._method.prepare(target, moments)
            curves[name] = choices.curve()
            size = choices.held_bytes + (_bytes(moments) if self._moments.on_disk else 0)
            if size <= self._room:
                self._held[name] = choices
                self._room -= size
        return curves

    def take(self, name: str) -> Choices:
        """The choices of a layer, kept or fitted again; they are kept no longer."""
        choices = self._held.pop(name, None)
        return self._method.prepare(self._targets[name], self._moments.get(name)) if choices is None else choices


def _bytes(moments: Moments | None) -> int:
    values = [] if moments is None else [getattr(moments, field.name) for field in fields(moments)]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
