"""Construction of the chosen compressed layers, with a record of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mpochain.arrays import relative_distance
from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.limit import Limit
from mpochain.compression.methods import Method
from mpochain.compression.preparation import Preparation, choices_of, method_errors, reason_to_stay_dense
from mpochain.compression.records import LayerRecord
from mpochain.compression.sequential import Pair, corrected, in_sequence
from mpochain.compression.state import CompressionState
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import Errors
from mpochain.compression.statistics.store import MomentStore
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError, ExtensionError, MPOError, NonFiniteError
from mpochain.nn import CompressedLayer, MPOEmbedding, RowEmbedding
from mpochain.surgery.replacement import replace_layers
from mpochain.surgery.tying import tied_head
from mpochain.system.progress import TimeLeft
from mpochain.wording import kind_of

__all__ = ["Builder", "build_at_once", "build_in_sequence"]

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
    ) -> None:
        self._method, self._targets, self._chosen = method, targets, chosen
        self._moments, self._preparation, self._state = moments, preparation, state
        self.records: dict[str, LayerRecord] = {}
        self.built: dict[nn.Module, nn.Module] = {}
        self.verified = False

    def __call__(self, name: str, pair: Pair | None = None) -> nn.Module | None:
        """Build and record the replacement of a dense layer; None if the layer stays dense.

        Args:
            name: name of the layer.
            pair: moments of its inputs in both models, for sequential correction; None without correction.
        """
        target = self._targets[name]
        stored = None if self._state is None else self._state.layer(target)
        if stored is not None:
            layer, self.records[name] = stored
            return self._put(target, layer)
        moments = self._moments.get(name)
        reason = self._moments.unreached.get(name)
        result: Any = None
        if reason is None:
            with method_errors(self._method, name):
                choices, result = self._fitted(name, moments, pair)
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
            self.records[name] = _record(target, result, moments, reason)
        if result is not None:
            self._require_announced(choices.costs[self._chosen[name] :], self.records[name])
        layer = None if result is None else result.layer
        if self._state is not None:
            self._state.keep_layer(name, layer, self.records[name])
        return self._put(target, layer)

    def _fitted(self, name: str, moments: Moments | None, pair: Pair | None) -> tuple[Choices, Built | None]:
        """The choices of a layer, and the chosen one built; None if that is the dense layer."""
        target = self._targets[name]
        if pair is None or moments is None:
            choices = self._preparation.take(name)
            return choices, choices.build(self._chosen[name])
        correction = corrected(target.weight, moments, pair)
        choices = choices_of(self._method, replace(target, weight=correction.weight), correction.moments)
        result = choices.build(self._chosen[name])
        if isinstance(result, Built) and result.errors is not None:
            errors = Errors(correction.output_error(result.errors.output), result.errors.loss)
            result = Built(result.layer, errors)
        return choices, result

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
    last, left = time.monotonic(), TimeLeft(len(targets))
    for number, name in enumerate(targets, 1):
        builder(name)
        if time.monotonic() - last > _INTERVAL:
            last = time.monotonic()
            _logger.info("layers built: %s", left.after(number))
    builder.verify(limit)
    if not dry_run:
        builder.tie(heads)
        replace_layers(model, builder.built)


def build_in_sequence(
    model: nn.Module,
    targets: Mapping[str, Target],
    batches: Iterable[Any],
    builder: Builder,
    limit: Limit,
    *,
    dry_run: bool,
) -> None:
    """Build and replace layers block by block; restore the dense layers after a dry run or a failure."""
    in_sequence(model, targets, batches, builder)
    try:
        builder.verify(limit)
    finally:
        if dry_run or not builder.verified:
            replace_layers(model, {layer: dense for dense, layer in builder.built.items()})


def _record(target: Target, result: Built | None, moments: Moments | None, reason: str | None) -> LayerRecord:
    dense = LayerRecord(
        name=target.name,
        shape=target.shape,
        form="dense",
        parameters_before=target.parameters,
        parameters_after=target.parameters,
        bytes_before=target.bytes,
        bytes_after=target.bytes,
        macs_before=target.macs,
        macs_after=target.macs,
        weight_error=0.0,
        output_error=0.0 if moments is not None else None,
        loss_increase=0.0 if moments is not None and moments.gradients is not None else None,
        rows=None if moments is None else moments.rows,
        reason=reason,
    )
    if result is None:
        return dense
    layer = result.layer
    numbers = layer.numbers()
    weight64, weight = target.weight.double(), layer.weight.detach()
    if not weight.isfinite().all():
        raise NonFiniteError(
            f"{target.name}: the compressed form of its weight exceeds the range of {target.weight.dtype}; convert the "
            "model to a wider type, or leave the layer out with ignore="
        )
    return replace(
        dense,
        form=layer.form(),
        parameters_after=numbers.parameters,
        bytes_after=numbers.bytes,
        macs_after=numbers.macs,
        weight_error=relative_distance(weight64, weight),
        output_error=result.errors.output if result.errors is not None else None,
        loss_increase=result.errors.loss if result.errors is not None else None,
        padding=_padding(target, layer),
    )


def _padding(target: Target, layer: nn.Module) -> float | None:
    """Norm of an embedding's padding row if the row was zero and no longer is; None otherwise."""
    if not isinstance(target.module, nn.Embedding) or target.module.padding_idx is None:
        return None
    padding = target.module.padding_idx
    with torch.no_grad():
        norm = float(layer(torch.tensor([padding], device=target.weight.device)).double().norm())
    return norm if norm and not target.weight[padding].any() else None
