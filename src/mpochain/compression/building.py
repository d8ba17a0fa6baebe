"""Construction of the chosen compressed layers, with a record of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mpochain.compression.built_record import record_of
from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.limit import Limit
from mpochain.compression.methods import Method
from mpochain.compression.preparation import Preparation, choices_of, method_errors, reason_to_stay_dense
from mpochain.compression.records import LayerRecord
from mpochain.compression.state import CompressionState
from mpochain.compression.statistics.division import UNDIVIDED, Division
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.store import MomentStore
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError, ExtensionError, MPOError
from mpochain.nn import CompressedLayer, MPOEmbedding, RowEmbedding
from mpochain.surgery.replacement import replace_layers
from mpochain.surgery.tying import tied_head
from mpochain.system.progress import TimeLeft
from mpochain.wording import kind_of

__all__ = ["Builder", "build_all", "build_at_once"]

_logger = logging.getLogger(__name__)

# Seconds between two progress messages while layers are built.
_INTERVAL = 20.0


class Builder:
    """Builder of the chosen layer of each target, which also records its size and errors.

    Args:
        method: compression method.
        targets: dense layers by name.
        chosen: index of the choice of each layer.
        moments: statistics of the layers.
        preparation: choices of the layers, fitted without correction.
        state: keeps the built layers, and has those of an interrupted run; None to keep none.
        division: processes that build layers of their own.

    Attributes:
        records: record of each layer built so far, by name.
        built: compressed layer of each dense module to replace.
        verified: whether :meth:`verify` has succeeded.
    """

    def __init__(
        self,
        method: Method,
        targets: Mapping[str, Target],
        chosen: Mapping[str, int],
        moments: MomentStore,
        preparation: Preparation,
        state: CompressionState | None = None,
        division: Division = UNDIVIDED,
    ) -> None:
        self.division = division
        self._method, self._targets, self._chosen = method, targets, chosen
        self._moments, self._preparation, self._state = moments, preparation, state
        self.records: dict[str, LayerRecord] = {}
        self.built: dict[nn.Module, nn.Module] = {}
        self.verified = False

    def __call__(self, name: str) -> nn.Module | None:
        """Build, record and keep the replacement of a dense layer; None if the layer stays dense."""
        if self.restore(name):
            return self.built.get(self._targets[name].module)
        return self.keep(name, *self.proposal(name))

    def exchange(self, name: str) -> None:
        """Take the replacement that the owner of a layer has built; every process calls this in the same order."""
        mapped = self._state is not None and self._state.mapped
        if mapped and all(self.division.team.gathered(self.restore(name))):
            return
        target, owner = self._targets[name], self.division.owner(name)
        own: tuple[Any, LayerRecord] | None = None
        if self.division.owns(name):
            layer = self.built.get(target.module)
            own = (None if layer is None else layer.to("cpu"), self.records[name])
        received = self.division.team.sent(own, owner)
        assert received is not None
        layer, self.records[name] = received
        self._put(target, None if layer is None else layer.to(target.weight.device))

    def has_statistics(self, name: str) -> bool:
        """Whether data and gradients reached a layer."""
        return name not in self._moments.unreached

    def restore(self, name: str) -> bool:
        """Take a layer from the state of an interrupted run; False if it is not built yet."""
        target = self._targets[name]
        stored = None if self._state is None else self._state.layer(target)
        if stored is None:
            return False
        layer, self.records[name] = stored
        self._put(target, layer)
        return True

    def keep(self, name: str, layer: CompressedLayer | None, record: LayerRecord) -> nn.Module | None:
        """Take a replacement of a dense layer, None if it stays dense, as the final one."""
        self.records[name] = record
        if self._state is not None:
            self._state.keep_layer(name, layer, record)
            if self._state.mapped and self.restore(name):  # so that it takes no memory
                return self.built.get(self._targets[name].module)
        return self._put(self._targets[name], layer)

    def proposal(self, name: str) -> tuple[CompressedLayer | None, LayerRecord]:
        """Build the replacement of a dense layer, None if it stays dense, and its record."""
        reason = self._moments.unreached.get(name)
        choices = None
        if self._preparation.release_if_dense(name, self._chosen[name]):
            reason = reason or self._preparation.without_choice.get(name)
        elif reason is None:
            choices = self._preparation.take(name)
        return self._built(self._targets[name], self._moments.get(name), choices, reason)

    def moments_of(self, name: str) -> Moments:
        """The moments of a layer that has statistics."""
        moments = self._moments.get(name)
        assert moments is not None
        return moments

    def corrected_proposal(
        self, name: str, weight: Tensor, moments: Moments
    ) -> tuple[CompressedLayer, LayerRecord] | None:
        """Build the replacement of a dense layer from another weight; None if its choices have no layer of its size.

        Args:
            name: name of a layer with statistics.
            weight: the weight ``(out, in)`` to compress, of the type of the dense one.
            moments: moments of a layer with this weight, on the inputs that it reads.
        """
        target = replace(self._targets[name], weight=weight)
        choices = choices_of(self._method, target, moments)
        if self._chosen[name] >= len(choices):
            return None
        layer, record = self._built(target, moments, choices, None)
        return None if layer is None else (layer, record)

    def _built(
        self, target: Target, moments: Moments | None, choices: Choices | None, reason: str | None
    ) -> tuple[CompressedLayer | None, LayerRecord]:
        """The chosen replacement of a layer, and its record with respect to the dense weight."""
        name, result = target.name, None
        if choices is not None:
            with method_errors(self._method, name):
                result = choices.build(self._chosen[name])
            if result is None:
                reason = reason_to_stay_dense(choices, target, self._method)
        if result is not None:
            self._require_fitting(result, target)
        if result is not None and isinstance(target.module, nn.Embedding):
            table: Any = result.layer
            rows = table if isinstance(table, RowEmbedding) else MPOEmbedding.of(table)
            rows.padding_idx = target.module.padding_idx
            result = Built(rows, result.errors)
        with method_errors(self._method, name):
            record = record_of(self._targets[name], result, moments, reason)
        if result is not None and choices is not None:
            self._require_announced(choices.costs[self._chosen[name] :], record)
        return (None if result is None else result.layer), record

    def _require_announced(self, costs: Costs, record: LayerRecord) -> None:
        """Refuse a layer that stores more than the method announced for it, the first of ``costs``."""
        for unit, announced, actual in (
            ("parameters", int(costs.parameters[0]), record.parameters_after),
            ("bytes", int(costs.bytes[0]), record.bytes_after),
        ):
            if actual > announced:
                raise ExtensionError(
                    f"method {self._method.name!r}, layer {record.name}: it announced wrong costs, {announced:,} "
                    f"{unit} where the layer that it built stores {actual:,}; report it to its authors"
                )

    def _put(self, target: Target, layer: CompressedLayer | None) -> nn.Module | None:
        """Remember the replacement of a layer; None if the layer stays dense."""
        if layer is None:
            return None
        bias = layer.bias
        for parameter in layer.parameters():
            if parameter.is_floating_point():  # a layer from outside may hold integer codes
                parameter.requires_grad_(target.bias_trainable if parameter is bias else target.trainable)
        self.built[target.module] = layer.train(target.training)
        return layer

    def _require_fitting(self, result: object, target: Target) -> None:
        """Refuse what a method built if it cannot stand for the layer."""
        built = f"method {self._method.name!r} built"
        if not isinstance(result, Built):
            raise ArgumentError(f"{built} {kind_of(result)} for {target.name}; expected Built(layer)")
        layer: object = result.layer
        if not isinstance(layer, CompressedLayer):
            raise ArgumentError(
                f"{built} {kind_of(layer)} for {target.name}; expected a subclass of "
                "mpochain.nn.CompressedLayer, such as MPOLinear"
            )
        if layer.shape != target.shape:
            raise ArgumentError(
                f"{built} {kind_of(layer)} with a weight of shape {layer.shape} for {target.name}; expected "
                f"{target.shape}, (out, in) of the dense layer"
            )

    def tie(self, heads: Mapping[nn.Linear, nn.Embedding]) -> None:
        """Build a head for each linear head whose embedding was compressed, sharing the embedding's parameters."""
        for head, embedding in heads.items():
            table = self.built.get(embedding)
            if isinstance(table, RowEmbedding):
                self.built[head] = tied_head(table).train(head.training)

    def verify(self, limit: Limit) -> None:
        """Check the result: no layer has grown, and all layers together are within the limit.

        Raises:
            MPOError: the method announced costs that its layers exceed.
        """
        larger = [record.name for record in self.records.values() if record.bytes_after > record.bytes_before]
        stored, allowed = sum(record.bytes_after for record in self.records.values()), limit.allowed
        macs = sum(record.macs_after for record in self.records.values())
        if larger and self._method.settled:
            raise ArgumentError(
                f"with its settings method {self._method.name!r} makes {larger[0]} larger than the dense layer "
                f"({len(larger)} such layers); choose settings that make layers smaller, or ignore= these"
            )
        if larger or stored > allowed:
            raise MPOError(
                f"the layers store {stored:,} bytes of {allowed:,} allowed, and {len(larger)} of them grew "
                f"({larger[:3]}); method {self._method.name!r} announced wrong costs; please report it to its authors"
            )
        if limit.macs is not None and macs > limit.macs:
            raise MPOError(
                f"the layers need {macs:,} multiply-adds of {limit.macs:,} allowed; method {self._method.name!r} "
                "announced wrong costs; please report it to its authors"
            )
        self.verified = True


def build_all(names: Collection[str], builder: Builder) -> None:
    """Build the named layers, each in its owner, and exchange them, without inserting them into the model."""
    team, own = builder.division.team, builder.division.own(names)
    last, left = time.monotonic(), TimeLeft(len(own))
    with team.together():
        for number, name in enumerate(own, 1):
            builder(name)
            if time.monotonic() - last > _INTERVAL:
                last = time.monotonic()
                _logger.info("layers built: %s", left.after(number))
    if not team.is_alone:
        for name in names:
            builder.exchange(name)


def build_at_once(
    model: nn.Module,
    targets: Mapping[str, Target],
    heads: Mapping[nn.Linear, nn.Embedding],
    builder: Builder,
    limit: Limit,
    *,
    dry_run: bool,
) -> None:
    """Build every layer, then insert all of them into the model."""
    build_all(targets, builder)
    builder.verify(limit)
    if not dry_run:
        builder.tie(heads)
        replace_layers(model, builder.built)
