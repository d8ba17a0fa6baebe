"""Layers made by what was chosen for each, with a record of every one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.methods import Built, Method
from mpochain.compression.records import LayerRecord
from mpochain.compression.sequential import Pair, corrected
from mpochain.compression.statistics.low_rank import Errors
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.store import MomentStore
from mpochain.errors import MPOError
from mpochain.nn.compressed import form_of
from mpochain.nn.dense import weight_and_bias
from mpochain.nn.embeddings import MPOEmbedding, RowEmbedding
from mpochain.surgery.tying import tied_head

__all__ = ["Maker"]


class Maker:
    """Makes layers by what was chosen for each, and keeps a record of every one."""

    def __init__(
        self, way: Method, layers: Mapping[str, nn.Module], chosen: Mapping[str, int], moments: MomentStore
    ) -> None:
        self._way, self._layers, self._chosen, self._moments = way, layers, chosen, moments
        self.records: dict[str, LayerRecord] = {}
        self.built: dict[nn.Module, nn.Module] = {}
        self.verified = False

    def __call__(self, name: str, pair: Pair | None) -> nn.Module | None:
        """The layer that takes the place of another, corrected by what both models give it; None for none."""
        layer, moments = self._layers[name], self._moments.get(name)
        weight, bias = (None if each is None else each.detach() for each in weight_and_bias(layer, name))
        assert weight is not None
        correction = corrected(weight, moments, pair) if pair is not None and moments is not None else None
        if correction is None:
            made = self._way.build(weight, bias, moments, self._chosen[name])
        else:
            made = self._way.build(correction.weight, bias, correction.moments, self._chosen[name])
            if made is not None and made.errors is not None:
                made = Built(made.layer, Errors(correction.output_error(made.errors.output), made.errors.loss))
        if made is not None and isinstance(layer, nn.Embedding):
            table: Any = made.layer
            rows = table if isinstance(table, RowEmbedding) else MPOEmbedding.of(table)
            rows.padding_idx = layer.padding_idx
            made = Built(rows, made.errors)
        self.records[name] = replace(_record(layer, name, weight, made, moments), padding=_padding(layer, made))
        if made is None:
            return None
        for parameter in made.layer.parameters():
            parameter.requires_grad_(weight_and_bias(layer)[0].requires_grad)
        self.built[layer] = made.layer.train(layer.training)
        return self.built[layer]

    def tie(self, heads: Mapping[nn.Linear, nn.Embedding]) -> None:
        """Make a head for each one that is tied to an embedding that was made smaller."""
        for head, embedding in heads.items():
            made = self.built.get(embedding)
            if isinstance(made, RowEmbedding):
                self.built[head] = tied_head(made).train(head.training)

    def verify(self, allowed: int) -> None:
        """Count what came out: no layer larger than it was, all of them within what is allowed."""
        larger = [record.name for record in self.records.values() if record.bytes_after > record.bytes_before]
        total = sum(record.parameters_after for record in self.records.values())
        if larger or total > allowed:
            raise MPOError(
                f"{total:,} parameters were made where {allowed:,} are allowed, or layers grew ({larger[:3]}); this is "
                "a defect of the method, please report it"
            )
        self.verified = True


def _record(layer: nn.Module, name: str, weight: Tensor, made: Built | None, moments: Moments | None) -> LayerRecord:
    out, in_ = (int(size) for size in weight.shape)
    dense = weight.numel() * weight.element_size()
    # A row that is looked up is not computed.
    macs = 0 if isinstance(layer, nn.Embedding) else out * in_
    record: dict[str, Any] = {
        "name": name,
        "shape": (out, in_),
        "form": "dense",
        "parameters_before": out * in_,
        "parameters_after": out * in_,
        "bytes_before": dense,
        "bytes_after": dense,
        "macs_before": macs,
        "macs_after": macs,
        "weight_error": 0.0,
        "output_error": 0.0 if moments is not None else None,
        "loss_increase": 0.0 if moments is not None and moments.gradients is not None else None,
    }
    if made is None:
        return LayerRecord(**record)
    smaller: Any = made.layer
    held = [each for key, each in smaller.state_dict().items() if key.rpartition(".")[2] != "bias"]
    wide = weight.double()
    record |= {
        "form": form_of(smaller),
        "parameters_after": sum(each.numel() for each in held if each.is_floating_point()),
        "bytes_after": sum(each.numel() * each.element_size() for each in held),
        "macs_after": smaller.macs(),
        "weight_error": float((wide - smaller.weight.detach().double()).norm() / wide.norm()) if wide.any() else 0.0,
        "output_error": made.errors.output if made.errors is not None else None,
        "loss_increase": made.errors.loss if made.errors is not None else None,
    }
    return LayerRecord(**record)


def _padding(layer: nn.Module, made: Built | None) -> float | None:
    """The norm of a row of padding that was zero, unless it still is."""
    if made is None or not isinstance(layer, nn.Embedding) or layer.padding_idx is None:
        return None
    with torch.no_grad():
        row = made.layer(torch.tensor([layer.padding_idx], device=layer.weight.device))
        norm = float(row.double().norm())
    return norm if norm and not layer.weight[layer.padding_idx].any() else None
