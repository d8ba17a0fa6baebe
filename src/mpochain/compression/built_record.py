"""Record of a layer that was built, or that stays dense."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from mpochain.arrays import relative_distance
from mpochain.compression.choices import Built
from mpochain.compression.layer_record import LayerRecord
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.target import Target
from mpochain.errors import NonFiniteError

__all__ = ["record_of"]


def record_of(target: Target, result: Built | None, moments: Moments | None, reason: str | None) -> LayerRecord:
    """Record of a layer.

    Args:
        target: the dense layer.
        result: what replaces it; None if it stays dense.
        moments: its statistics; None without data.
        reason: why it stays dense, if not because of the budget.

    Raises:
        NonFiniteError: the weight of the replacement exceeds the range of its type.
    """
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
        rows=None if moments is None else moments.rows_read,
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
