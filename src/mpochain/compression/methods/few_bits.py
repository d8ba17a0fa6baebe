"""Choices of one layer in few bits: the dense weight, or low rank in interpolative form, errors in nats per token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.methods.interpolative import DAMPING, index_bytes
from mpochain.compression.methods.uniform_bits import coded_numbers, dense_costs, usable
from mpochain.compression.statistics.loss_metric import LossMetric
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import Errors, Projections, errors_between, fit, losses
from mpochain.compression.target import Target
from mpochain.decomposition import interpolative, interpolative_parameters
from mpochain.nn import CompressedLayer, InterpolativeLinear, QuantizedLinear, QuantizedParts
from mpochain.quantization import Quantized, Scheme, Triangle, interpolation, two_sided
from mpochain.quantization.triangle import input_triangle, output_triangle

__all__ = ["RANK_STEP", "dense_in_bits", "interpolative_costs", "interpolative_in_bits", "interpolative_ranks"]

_Values = NDArray[np.float64]

# Ranks offered are multiples of it: kernels work in blocks of 8.
RANK_STEP = 8

# Low rank is rounded at these shares of the smaller side; what rounding adds is interpolated between them.
_ROUNDED_SHARES = (0.125, 0.375, 0.75)

# Rounds of rows and coefficients of the layer that is built; errors are estimated with one.
_ROUNDS = 2


class _Metrics:
    """Metrics of one layer: the loss, and the triangles along which rounding feeds its error back, made when needed."""

    def __init__(self, target: Target, moments: Moments | None) -> None:
        self.loss = LossMetric.of(target.weight, moments)
        self._name = target.name
        self._triangles: tuple[Triangle, Triangle] | None = None

    @property
    def triangles(self) -> tuple[Triangle, Triangle]:
        """Of the inputs and of the outputs."""
        if self._triangles is None:
            inputs, outputs = self.loss.inputs, self.loss.outputs
            self._triangles = (
                input_triangle(inputs, len(inputs), self._name),
                output_triangle(outputs, len(outputs), self._name),
            )
        return self._triangles


def dense_in_bits(target: Target, moments: Moments | None, schemes: Sequence[Scheme], factor: float) -> Choices:
    """Choices of the dense weight in codes, rounded with feedback of the error along inputs and outputs.

    Errors of 8 bits follow from those of fewer, as the squared step of the grid.

    Args:
        target: the dense layer.
        moments: its moments on both sides; None for equal weights.
        schemes: bits and groups to offer.
        factor: measured increase of the loss over the predicted one.
    """
    offered, reason = usable(target, list(schemes))
    metrics = _Metrics(target, moments)

    def rounded(scheme: Scheme) -> Quantized:
        return two_sided(target.weight, scheme, *metrics.triangles, name=target.name)

    def error(scheme: Scheme) -> float:
        short = rounded(scheme).dequantized(target.weight.dtype)
        return factor * metrics.loss.error(target.weight - short)

    def errors() -> tuple[_Values, float | None]:
        known: dict[Scheme, float] = {}
        for scheme in sorted(offered):
            coarser = [other for other in known if (other.group, other.symmetric) == (scheme.group, scheme.symmetric)]
            if scheme.bits == 8 and coarser:
                finest = max(coarser)
                known[scheme] = known[finest] * (finest.largest_code / scheme.largest_code) ** 2
            else:
                known[scheme] = error(scheme)
        return np.array([known[scheme] for scheme in offered]), metrics.loss.error(target.weight)

    def build(choice: int) -> Built:
        layer = QuantizedLinear.from_codes(rounded(offered[choice]), target.bias, dtype=target.weight.dtype)
        return _built(target, moments, layer, factor)

    return Choices.of(target, dense_costs(target, offered), errors, build, unit=_unit(moments), reason=reason)


def interpolative_ranks(shape: tuple[int, int]) -> NDArray[np.int64]:
    """Ranks offered for a layer ``(out, in)``.

    Example:
        >>> interpolative_ranks((40, 64))
        array([ 8, 16, 24, 32])
    """
    return np.arange(RANK_STEP, min(shape), RANK_STEP, dtype=np.int64)


def interpolative_in_bits(target: Target, moments: Moments | None, schemes: Sequence[Scheme], factor: float) -> Choices:
    """Choices of low rank in interpolative form whose rows and coefficients are in codes.

    The error has two parts. That of the rank is known exactly at every rank. What rounding adds is computed at a few
    ranks for one scheme, interpolated between them as its logarithm, and scaled to the other schemes by the ratio at
    one rank. 8 bits follow from fewer, as the squared step of the grid.

    Args:
        target: the dense layer.
        moments: its moments on both sides; None for equal weights.
        schemes: bits and groups of rows and coefficients to offer.
        factor: measured increase of the loss over the predicted one.
    """
    out, in_ = target.shape
    ranks = interpolative_ranks(target.shape)
    offered, reason = usable(target, list(schemes))
    parts = [interpolative_costs(target, ranks, scheme) for scheme in offered]
    kept = [ranks[part.bytes < target.bytes] for part in parts]
    parts = [part[: len(own)] for part, own in zip(parts, kept, strict=True)]
    places = [(scheme, int(rank)) for scheme, own in zip(offered, kept, strict=True) for rank in own]
    if not places:
        reason = reason or f"no rank of the {out}x{in_} weight is a multiple of {RANK_STEP} and smaller in few bits"
        return Choices.of(target, Costs.of(target, [], []), np.empty(0), lambda _: None, reason=reason)
    metrics = _Metrics(target, moments)
    projections = fit(target.weight, moments, damping=DAMPING)

    def layer_of(scheme: Scheme, rank: int, rounds: int) -> CompressedLayer:
        return _interpolative_layer(target, projections, metrics, scheme, rank, rounds)

    def errors() -> tuple[_Values, float | None]:
        of_rank = losses(projections, target.weight, moments)

        def added(scheme: Scheme, rank: int) -> float:
            lost = metrics.loss.error(target.weight - layer_of(scheme, rank, 1).weight.detach())
            return max(lost - float(of_rank[rank]), 1e-6 * lost, 1e-300)

        # By rank for one scheme; for the others the ratio at one rank.
        reference = min(offered, key=lambda scheme: (abs(scheme.bits - 4), scheme))
        own = kept[offered.index(reference)]
        tried = sorted({int(own[np.abs(own - share * min(out, in_)).argmin()]) for share in _ROUNDED_SHARES})
        by_rank = [added(reference, rank) for rank in tried]
        middle = len(tried) // 2
        ratios = {reference: 1.0}
        for scheme in offered:
            if scheme not in ratios:
                finer = scheme.bits == 8 and reference.bits < 8
                step = (reference.largest_code / scheme.largest_code) ** 2
                ratios[scheme] = step if finer else added(scheme, tried[middle]) / by_rank[middle]
        values = [
            of_rank[own] + ratios[scheme] * np.exp(np.interp(own, tried, np.log(by_rank)))
            for scheme, own in zip(offered, kept, strict=True)
        ]
        return factor * np.concatenate(values), float(of_rank[0])

    def build(choice: int) -> Built:
        return _built(target, moments, layer_of(*places[choice], _ROUNDS), factor)

    return Choices.of(
        target,
        Costs.joined(*parts),
        errors,
        build,
        unit=_unit(moments),
        held_bytes=projections.bytes,
        reason=reason,
    )


def interpolative_costs(target: Target, ranks: NDArray[np.int64], scheme: Scheme) -> Costs:
    """Costs of low rank whose rows and coefficients are in codes; its permutation of outputs counts in bytes."""
    out, in_ = target.shape
    counts = ranks.tolist()
    shapes = [((rank, in_), (out - rank, rank)) for rank in counts]  # of rows and of coefficients
    return Costs(
        np.array([sum(coded_numbers(scheme, *shape) for shape in pair) for pair in shapes], dtype=np.int64),
        np.array([sum(scheme.bytes(*shape) for shape in pair) for pair in shapes], dtype=np.int64)
        + index_bytes(target),
        np.array([interpolative_parameters(out, in_, rank) for rank in counts], dtype=np.int64),
        target.element_size,
    )


def _interpolative_layer(
    target: Target, projections: Projections, metrics: _Metrics, scheme: Scheme, rank: int, rounds: int
) -> CompressedLayer:
    low_rank = interpolative(*projections.factors(target.weight, rank))
    short = interpolation(target.weight, low_rank, scheme, *metrics.triangles, rounds=rounds, name=target.name)
    assert short.coefficients is not None, "ranks are below the number of rows"
    layer = InterpolativeLinear.from_interpolation(short.dequantized(target.weight.dtype), target.bias)
    codes = {"rows": short.rows, "coefficients": short.coefficients}
    return QuantizedParts.of(layer, codes, name=target.name)


def _built(target: Target, moments: Moments | None, layer: CompressedLayer, factor: float) -> Built:
    """A layer with its errors on the calibration data, the loss times its factor."""
    if moments is None:
        return Built(layer)
    errors = errors_between(target.weight, moments, layer.weight)
    return Built(layer, Errors(errors.output, None if errors.loss is None else factor * errors.loss))


def _unit(moments: Moments | None) -> str:
    return "nats per token" if moments is not None else "half the squared norm of the weight"
