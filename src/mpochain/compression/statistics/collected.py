"""Moments of layers from the sums over all batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mpochain.compression.statistics.division import Division
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.square_sum import compact, unit_rows
from mpochain.compression.statistics.sums import Sums

__all__ = ["Collected", "collected"]


@dataclass(frozen=True, eq=False)
class Collected:
    """Moments of the layers that data and gradients reached, and the reasons why others have none.

    Attributes:
        moments: moments by layer name.
        unreached: reason by layer name, as text that completes "the layer has no statistics, because ...".
    """

    moments: dict[str, Moments] = field(default_factory=dict)
    unreached: dict[str, str] = field(default_factory=dict)


def collected(sums: Mapping[str, Sums], *, gradients: bool, division: Division) -> Collected:
    """The moments of the layers of this process, and the layers that nothing reached in any process."""
    result = Collected()
    owners: dict[int, Tensor] = {}
    for name, layer_sums in sums.items():
        # Layers that read the same inputs share the moments of the first of them, which no gradient need have reached.
        has_own = layer_sums.keeps_inputs and division.owns(name) and not layer_sums.input_sum.is_empty
        if has_own and layer_sums.history not in owners:
            owners[layer_sums.history] = layer_sums.input_sum.mean(layer_sums.rows)
        reason = _unreached(layer_sums, gradients=gradients)
        if reason is not None:
            result.unreached[name] = reason
            continue
        if not division.owns(name):
            continue
        inputs = owners[layer_sums.history] if layer_sums.keeps_inputs else None
        result.moments[name] = _moments(layer_sums, inputs)
    return result


def _unreached(layer_sums: Sums, *, gradients: bool) -> str | None:
    """Why a layer has no statistics; None if it has."""
    if not layer_sums.rows:
        return "no calibration batch reached it"
    if gradients and not layer_sums.has_gradients:
        return "no gradient of the loss reached it"
    if gradients and not layer_sums.gradient_power:
        return "the gradient of the loss is zero there"
    return None


def _moments(layer_sums: Sums, inputs: Tensor | None) -> Moments:
    rows, gradients, output_gradients = layer_sums.rows, None, None
    # Errors of experts are per token of the mixture, so that they compare with those of layers that read all tokens.
    tokens = layer_sums.tokens or rows
    if not layer_sums.is_wide:
        assert inputs is not None
        activations = inputs
    elif inputs is not None:
        activations = _transformed(layer_sums.weight, inputs)
    else:
        activations = layer_sums.output_sum.mean(rows)
    if not layer_sums.gradient_sum.is_empty:
        gradients = layer_sums.gradient_sum.mean(tokens)
        if layer_sums.keeps_outputs:
            output_gradients = gradients
            if not layer_sums.is_wide:
                gradients = _transformed(layer_sums.weight.T, output_gradients)
    return Moments(
        activations,
        gradients,
        layer_sums.input_power / rows,
        layer_sums.gradient_power / tokens if gradients is not None else None,
        rows,
        inputs,
        output_gradients,
    )


def _transformed(factor: Tensor, moments: Tensor) -> Tensor:
    """``F M F^T``, the moments of ``F x`` from those of ``x``."""
    unit_factor, exponent = unit_rows(factor)
    unit, more = unit_rows(moments)
    return compact(unit_factor @ unit @ unit_factor.T, 2 * exponent + more)
