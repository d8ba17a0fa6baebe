"""Sums of Kronecker products with small right factors, as in TQCompressor and KnGPT-2."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from mpochain.chain import MPOChain
from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.methods.method import Method, MethodSettings
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import errors_between
from mpochain.compression.target import Target
from mpochain.decomposition import (
    KroneckerFactors,
    calibrated,
    interleave,
    scaled_to_first,
    split_off,
    split_spec,
)
from mpochain.errors import SpecError
from mpochain.linalg import eigh
from mpochain.nn import MPOLinear, PermutedLinear

__all__ = ["Kronecker"]

# Default shape of the right factors: 4 along the longer side of the matrix and 2 along the shorter, or 2 x 2 for a
# square matrix.
_LONG_SIDE, _SHORT_SIDE = 4, 2

# Iterations of the fit of a sum to calibration data.
_ITERATIONS = 50


def _integer(value: Any) -> Any:
    # Accepts NumPy integers, but neither bool nor text.
    return value if isinstance(value, bool | str | float) else operator.index(value)


_Count = Annotated[int, BeforeValidator(_integer), Field(ge=1, strict=True)]


_Factors = tuple[tuple[int, int], ...]


class Kronecker(Method):
    """Kronecker sums ``sum_r A_r (x) B_r``; without ``terms``, every layer keeps the same share of its parameters.

    Source: TQCompressor, arXiv 2401.16367, whose factors for GPT-2 are the default; KnGPT-2, arXiv 2110.08152. A layer
    stays dense if the default factors do not divide its sizes.

    Args:
        settings: see :class:`Kronecker.Settings`.
        values: fields of the settings.

    Raises:
        ArgumentError: several factors are given without a number of terms.

    Example:
        >>> import mpochain as mpo
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 12))
        >>> words = Kronecker(permuted=True, factors=[(1, 2), (1, 2)], terms=1)
        >>> report = mpo.compress(model, None, targets=["Embedding"], method=words)
        >>> report.method, model[0].table.inner.spec.core_shapes
        ('permuted_kronecker', ((1, 10, 2, 1), (1, 1, 2, 1), (1, 1, 2, 1)))
    """

    class Settings(MethodSettings):
        """Settings of :class:`Kronecker`.

        ``terms`` leaves one choice per layer, so :func:`mpochain.compress` takes no budget. A layer that would become
        larger, for example with more terms than the rank of the rearranged matrix, stays dense; the report shows it.
        """

        permuted: bool = Field(False, description="first search for a better order of rows and columns")
        calibrated: bool = Field(
            False,
            description="fit the sum to calibration data, in the order found without data; not for embeddings",
        )
        factors: tuple[tuple[_Count, _Count], ...] | None = Field(
            None,
            min_length=1,
            description="(out, in) of each factor to split off, the last site first; the outputs of an embedding are "
            "its words",
        )
        terms: _Count | None = Field(None, description="number of terms of the sum; by default the budget decides")
        seconds: float = Field(
            60.0, gt=0.0, allow_inf_nan=False, description="time limit of the search for one layer's order"
        )
        seed: int = Field(0, description="seed of the search")

        @model_validator(mode="after")
        def _one_factor_without_terms(self) -> Self:
            if self.factors is not None and self.terms is None and len(self.factors) > 1:
                raise ValueError(
                    f"{len(self.factors)} factors can be split off only from a single term; give terms=1, or one factor"
                )
            return self

    settings: Settings
    uniform = True

    def __init__(self, settings: Settings | None = None, /, **values: object) -> None:
        super().__init__(settings, **values)
        chosen = self.settings
        self.name = "calibrated_" * chosen.calibrated + "permuted_" * chosen.permuted + "kronecker"
        self.needs = "inputs" if chosen.calibrated else "nothing"
        self.embeddings = not chosen.calibrated
        self.settled = chosen.terms is not None

    def check(self, targets: Mapping[str, Target], budget: float | str | None) -> None:  # noqa: ARG002  # of the protocol
        """Refuse factors that do not divide the sizes of a layer.

        Raises:
            SpecError: the factors do not divide a layer; the message names it.
        """
        if self.settings.factors is None:
            return
        for name, target in targets.items():
            try:
                split_spec(target.shape, self.settings.factors, self.settings.terms or 1)
            except SpecError as error:
                raise SpecError(f"{name}: {error}") from error

    def needs_inputs(self, shape: tuple[int, int]) -> bool:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return self.settings.calibrated

    def smallest(self, target: Target) -> int:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        costs = self._costs(target, self._factors(target))
        return int(costs.bytes[0]) if len(costs) else target.bytes

    def prepare(self, target: Target, moments: Moments | None) -> Choices:
        """See :class:`~mpochain.compression.methods.method.Method`; errors are those of the unpermuted weight."""
        factors = self._factors(target)
        costs = self._costs(target, factors)

        def errors() -> tuple[NDArray[np.float64], float]:
            if not len(costs):
                return np.empty(0), float(target.weight.double().square().sum())
            spec = split_spec(target.shape, factors, len(costs) + 1)
            blocks = interleave(target.weight.double(), spec).reshape(spec.out_dims[0] * spec.in_dims[0], -1)
            squares = np.maximum(np.asarray(eigh(blocks.T @ blocks)[0].cpu())[::-1], 0.0)
            lost = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
            return lost[1 : len(costs) + 1], float(lost[0])

        def build(choice: int) -> Built:
            return self._built(target, moments, factors, self.settings.terms or choice + 1)

        # Settled choices are never compared, and with several factors no single spectrum gives the errors.
        source = None if self.settled else errors
        (out, in_), (m, n) = target.shape, factors[0]
        divides = not (out % m or in_ % n)
        reason = None if divides else f"the factor {m}x{n} does not divide the {out}x{in_} weight; give other factors"
        return Choices.of(target, costs, source, build, unit="squared norm of the weight", reason=reason)

    def _built(self, target: Target, moments: Moments | None, factors: _Factors, terms: int) -> Built:
        weight = target.weight
        split = split_off(
            weight,
            factors,
            terms,
            permuted=self.settings.permuted,
            seconds=self.settings.seconds,
            seed=self.settings.seed,
            name=target.name,
        )
        if self.settings.calibrated and moments is not None:
            split = _calibrated(weight, split, moments, target.name)
        split = replace(split, cores=tuple(core.to(weight.dtype) for core in split.cores))
        layer = (
            PermutedLinear.from_split(split, target.bias)
            if self.settings.permuted
            else MPOLinear.from_chains(MPOChain(split.cores, split.spec), target.bias)
        )
        known = self.settings.calibrated and moments is not None
        return Built(layer, errors_between(weight, moments, layer.weight) if known and moments is not None else None)

    def _factors(self, target: Target) -> _Factors:
        if self.settings.factors is not None:
            return self.settings.factors
        out, in_ = target.shape
        if out == in_:
            return ((_SHORT_SIDE, _SHORT_SIDE),)
        return ((_LONG_SIDE, _SHORT_SIDE),) if out > in_ else ((_SHORT_SIDE, _LONG_SIDE),)

    def _costs(self, target: Target, factors: _Factors) -> Costs:
        """Costs of sums of 1, 2, ... terms smaller than the matrix; none if the factors do not divide it."""
        out, in_ = target.shape
        # The permutations of rows and columns take four bytes per row and column.
        index_bytes = 4 * (out + in_) if self.settings.permuted else 0
        if self.settings.factors is None and (out % factors[0][0] or in_ % factors[0][1]):
            return Costs.of(target, [], [])
        if self.settings.terms is not None:
            spec = split_spec((out, in_), factors, self.settings.terms)
            costs = Costs.of(target, [spec.parameters], [target.chain_macs(spec)], index_bytes=index_bytes)
        else:
            one = split_spec((out, in_), factors, 1)
            terms = np.arange(1, min(one.out_dims[0] * one.in_dims[0], one.out_dims[1] * one.in_dims[1]))
            costs = Costs.of(target, terms * one.parameters, terms * target.chain_macs(one), index_bytes=index_bytes)
        return costs[: int(np.searchsorted(costs.elements, target.parameters))]


def _calibrated(weight: Tensor, split: KroneckerFactors, moments: Moments, name: str) -> KroneckerFactors:
    """Refit the chain to the calibration data, keeping the order of rows and columns."""
    assert moments.inputs is not None
    reordered = weight[split.rows][:, split.columns]
    gram = moments.inputs[split.columns][:, split.columns]
    fitted = calibrated(reordered, split.spec, gram, iterations=_ITERATIONS, name=name)
    return replace(split, cores=scaled_to_first(fitted.terms[0]))
