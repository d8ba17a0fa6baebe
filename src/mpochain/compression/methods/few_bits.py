"""Choices of one layer in few bits: the dense weight, or low rank in interpolative form, errors in nats per token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.methods.interpolative import index_bytes
from mpochain.compression.methods.rounding_metric import RoundingMetric
from mpochain.compression.methods.uniform_bits import coded_numbers, dense_costs, usable
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import Errors, Projections, errors_between, losses
from mpochain.compression.target import Target
from mpochain.decomposition import interpolative, interpolative_parameters
from mpochain.nn import CompressedLayer, InterpolativeLinear, QuantizedLinear, QuantizedParts
from mpochain.quantization import Scheme, Triangle, interpolation, two_sided

__all__ = ["RANK_STEP", "dense_in_bits", "interpolative_costs", "interpolative_in_bits", "interpolative_ranks"]

_Values = NDArray[np.float64]

# Ranks offered are multiples of it: kernels work in blocks of 8.
RANK_STEP = 8

# Low rank is rounded at these shares of the smaller side; what rounding adds is interpolated between them.
_ROUNDED_SHARES = (0.2, 0.6)

# What rounding adds grows as this power of the step of the grid: by 3.8 from 4 to 3 bits and by 17 from 4 to 2.
# Measured on SmolLM2: 3.9 to 4.1 and 16 to 18 for the dense weight, and 3.6 to 4.3 from 4 to 3 bits for low rank.
_POWER_OF_STEP = 1.75

# A weight whose error at more bits is smaller than expected by this factor lies on such a grid already, as one that was
# expanded from a file in few bits does; then nothing follows for fewer bits.
_ON_ITS_GRID = 3.0

# Rounds of rows and coefficients of the layer that is built; errors are estimated with one.
_ROUNDS = 2


def dense_in_bits(
    target: Target, moments: Moments | None, schemes: Sequence[Scheme], metric: RoundingMetric, factor: float
) -> Choices:
    """Choices of the dense weight in codes, rounded with feedback of the error along inputs and outputs.

    The weight is rounded at the most and the fewest bits below 8. Errors between and at 8 bits follow from these, as a
    power of the step of the grid.

    Args:
        target: the dense layer.
        moments: its moments on both sides; None for equal weights.
        schemes: bits and groups to offer.
        metric: the metric in which the weight is rounded and judged.
        factor: measured increase of the loss over the predicted one.
    """
    offered, reason = usable(target, list(schemes))

    def errors() -> tuple[_Values, float | None]:
        triangles = metric.triangles()

        def error(scheme: Scheme) -> float:
            short = two_sided(target.weight, scheme, *triangles, name=target.name)
            return factor * metric.judging.error(target.weight - short.dequantized(target.weight.dtype))

        bits = {scheme.bits for scheme in offered} - {8}
        # Rounded at the most and the fewest bits below 8; at those between by interpolation.
        ends = {min(bits), max(bits)} if bits else {8}
        known = {scheme: error(scheme) for scheme in offered if scheme.bits in ends}

        def estimate(scheme: Scheme) -> float:
            alike = sorted(other for other in known if replace(other, bits=scheme.bits) == scheme)
            coarse, fine = alike[0], alike[-1]
            if scheme.bits >= fine.bits:
                return known[fine] * _of_step(fine, scheme)
            if known[fine] * _ON_ITS_GRID < known[coarse] * _of_step(coarse, fine):
                return error(scheme)
            share = math.log(_of_step(coarse, scheme)) / math.log(_of_step(coarse, fine))
            return known[coarse] ** (1 - share) * known[fine] ** share

        values = [known[scheme] if scheme in known else estimate(scheme) for scheme in offered]
        return np.array(values), factor * metric.judging.error(target.weight)

    def build(choice: int) -> Built:
        short = two_sided(target.weight, offered[choice], *metric.triangles(), name=target.name)
        layer = QuantizedLinear.from_codes(short, target.bias, dtype=target.weight.dtype)
        return _built(target, moments, layer, factor)

    return Choices.of(target, dense_costs(target, offered), errors, build, unit=_unit(moments), reason=reason)


def interpolative_ranks(shape: tuple[int, int]) -> NDArray[np.int64]:
    """Ranks offered for a layer ``(out, in)``.

    Example:
        >>> interpolative_ranks((40, 64))
        array([ 8, 16, 24, 32])
    """
    return np.arange(RANK_STEP, min(shape), RANK_STEP, dtype=np.int64)


def interpolative_in_bits(
    target: Target,
    moments: Moments | None,
    schemes: Sequence[Scheme],
    metric: RoundingMetric,
    factor: float,
    rank_factor: float,
) -> Choices:
    """Choices of low rank in interpolative form whose rows and coefficients are in codes.

    The error has two parts. That of the rank is known exactly at every rank. What rounding adds is computed at two
    ranks for one scheme, interpolated between them as its logarithm, and scaled to the other schemes as a power of the
    step of their grid.

    Args:
        target: the dense layer.
        moments: its moments on both sides; None for equal weights.
        schemes: bits and groups of rows and coefficients to offer.
        metric: the metric in which rows and coefficients are rounded and judged.
        factor: measured increase of the loss over the predicted one, of what rounding adds.
        rank_factor: the same of what the rank loses.
    """
    out, in_ = target.shape
    ranks = interpolative_ranks(target.shape)
    offered, reason = usable(target, list(schemes))
    smaller = {scheme: ranks[interpolative_costs(target, ranks, scheme).bytes < target.bytes] for scheme in offered}
    kept = {scheme: own for scheme, own in smaller.items() if len(own)}
    places = [(scheme, int(rank)) for scheme, own in kept.items() for rank in own]
    if not places:
        reason = reason or f"no rank of the {out}x{in_} weight is a multiple of {RANK_STEP} and smaller in few bits"
        return Choices.of(
            target, Costs.of(target, [], []), np.empty(0), lambda _: None, unit=_unit(moments), reason=reason
        )
    judging = None if moments is None else moments.judging

    def errors() -> tuple[_Values, float | None]:
        projections, triangles = metric.low_rank(), metric.triangles()
        of_rank = losses(projections, target.weight, judging)

        def added(scheme: Scheme, rank: int) -> float:
            layer = _interpolative_layer(target, projections, triangles, scheme, rank, rounds=1)
            lost = metric.judging.error(target.weight - layer.weight.detach())
            return max(lost - float(of_rank[rank]), 1e-6 * lost, 1e-300)

        # By rank for one scheme; the others differ by the step of their grid.
        reference = min(kept, key=lambda scheme: (abs(scheme.bits - 4), scheme))
        own = kept[reference]
        tried = sorted({int(own[np.abs(own - share * min(out, in_)).argmin()]) for share in _ROUNDED_SHARES})
        by_rank = np.log([added(reference, rank) for rank in tried])
        values = [
            rank_factor * of_rank[own] + factor * _of_step(reference, scheme) * np.exp(np.interp(own, tried, by_rank))
            for scheme, own in kept.items()
        ]
        return np.concatenate(values), factor * float(of_rank[0])

    def build(choice: int) -> Built:
        scheme, rank = places[choice]
        # Fitted again: few layers become low rank, and a fit takes as much memory as a layer.
        triangles, projections = metric.triangles(), metric.low_rank()
        layer = _interpolative_layer(target, projections, triangles, scheme, rank, rounds=_ROUNDS)
        built = _built(target, moments, layer, factor)
        if built.errors is None or built.errors.loss is None:
            return built
        # The part of the rank has a factor of its own.
        of_rank = float(losses(projections, target.weight, judging)[rank])
        increase = built.errors.loss + (rank_factor - factor) * min(of_rank, built.errors.loss / factor)
        return Built(layer, Errors(built.errors.output, increase))

    return Choices.of(
        target,
        Costs.joined(*(interpolative_costs(target, own, scheme) for scheme, own in kept.items())),
        errors,
        build,
        unit=_unit(moments),
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


def _of_step(known: Scheme, other: Scheme) -> float:
    """What rounding in another scheme adds, over that of a known one of another number of bits."""
    return (known.largest_code / other.largest_code) ** _POWER_OF_STEP


def _interpolative_layer(
    target: Target,
    projections: Projections,
    triangles: tuple[Triangle, Triangle],
    scheme: Scheme,
    rank: int,
    *,
    rounds: int,
) -> CompressedLayer:
    low_rank = interpolative(*projections.factors(target.weight, rank))
    short = interpolation(target.weight, low_rank, scheme, *triangles, rounds=rounds, name=target.name)
    assert short.coefficients is not None, "ranks are below the number of rows"
    layer = InterpolativeLinear.from_interpolation(short.dequantized(target.weight.dtype), target.bias)
    codes = {"rows.weight": short.rows, "coefficients.weight": short.coefficients}
    return QuantizedParts.of(layer, codes, name=target.name)


def _built(target: Target, moments: Moments | None, layer: CompressedLayer, factor: float) -> Built:
    """A layer with its errors on the calibration data, the loss times its factor."""
    if moments is None:
        return Built(layer)
    errors = errors_between(target.weight, moments.judging, layer.weight)
    return Built(layer, Errors(errors.output, None if errors.loss is None else factor * errors.loss))


def _unit(moments: Moments | None) -> str:
    return "nats per token" if moments is not None else "half the squared norm of the weight"
