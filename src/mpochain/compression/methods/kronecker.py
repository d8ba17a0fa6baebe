"""Sums of Kronecker products with small right factors, as TQCompressor and KnGPT-2 have them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mpochain.chain import MPOChain
from mpochain.compression.allocation import Curve
from mpochain.compression.methods.method import Built, Method
from mpochain.compression.statistics.low_rank import errors_between
from mpochain.compression.statistics.moments import Moments
from mpochain.decomposition import Split, calibrated, interleave, split_off, split_spec
from mpochain.errors import SpecError
from mpochain.nn import MPOLinear, PermutedLinear

__all__ = ["Kronecker"]

# The right factors are of 4 along the longer side and 2 along the other, and 2 x 2 of a square matrix.
_LONG, _SHORT = 4, 2

# How long a sum is fitted to calibration data.
_ITERATIONS = 50


class Kronecker(Method):
    """``sum_r A_r (x) B_r``; without ``terms``, every layer has so many that it keeps the same share of its parameters.

    Source: TQCompressor, arXiv 2401.16367, whose factors for GPT-2 are the default; KnGPT-2, arXiv 2110.08152. A layer
    whose sizes the default does not divide stays dense.

    Args:
        permuted: whether rows and columns are put into a better order first.
        calibrated: whether the sum is fitted to what the layers see, in the order that is best without data. Not for
            embeddings.
        factors: ``(out, in)`` of each factor that is split off, see :func:`mpochain.decomposition.split_off`; of an
            embedding, words are its outputs.
        terms: of the sum; None to go by the budget. With a number of terms there is one choice for each layer, and
            :func:`mpochain.compress` takes no budget. With so many that a layer would become larger, as more than the
            rearranged matrix has rank, it stays dense, which the report shows.
        seconds: for the search of the orders of one layer.
        seed: of the search.

    Raises:
        SpecError: several factors without a number of terms.

    Example:
        >>> import mpochain as mpo
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 12))
        >>> words = Kronecker(permuted=True, factors=[(1, 2), (1, 2)], terms=1)
        >>> report = mpo.compress(model, None, targets=["Embedding"], method=words)
        >>> model[0].table.inner.spec.core_shapes
        ((1, 10, 2, 1), (1, 1, 2, 1), (1, 1, 2, 1))
    """

    uniform = True

    def __init__(
        self,
        *,
        permuted: bool,
        calibrated: bool = False,
        factors: Sequence[tuple[int, int]] | None = None,
        terms: int | None = None,
        seconds: float = 60.0,
        seed: int = 0,
    ) -> None:
        if factors is not None and terms is None and len(factors) > 1:
            raise SpecError(f"{len(factors)} factors are split off one term; give terms=1, or one factor")
        self.needs = "inputs" if calibrated else "nothing"
        self.embeddings = not calibrated
        self.settled = terms is not None
        self._permuted, self._calibrated = permuted, calibrated
        self._factors = None if factors is None else [(int(m), int(n)) for m, n in factors]
        self._terms, self._seconds, self._seed = terms, seconds, seed

    def require_fit(self, shape: tuple[int, int]) -> None:
        """Find out before any work whether the factors divide a matrix ``(out, in)``.

        Raises:
            SpecError: they do not.
        """
        if self._factors is not None:
            split_spec(shape, self._factors, self._terms or 1)

    def needs_inputs(self, shape: tuple[int, int]) -> bool:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return self._calibrated

    def curve(self, weight: Tensor, moments: Moments | None) -> Curve:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`; errors are those of the weight in its order.

        Raises:
            SpecError: there is a number of terms, and so no choice.
        """
        if self.settled:
            raise SpecError("with a number of terms there is no choice to draw a curve of")
        costs = self._costs(weight)
        whole = float(weight.double().square().sum())
        if not len(costs):
            return Curve(np.array([weight.numel()]), np.zeros(1), whole)
        spec = split_spec(_shape(weight), self._factors_of(weight), len(costs) + 1)
        blocks = interleave(weight.detach().double(), spec).reshape(spec.out_dims[0] * spec.in_dims[0], -1)
        squares = np.maximum(np.linalg.eigvalsh(np.asarray((blocks.T @ blocks).cpu()))[::-1], 0.0)
        errors = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
        return Curve(np.append(costs, weight.numel()), np.append(errors[1 : len(costs) + 1], 0.0), float(errors[0]))

    def build(self, weight: Tensor, bias: Tensor | None, moments: Moments | None, choice: int) -> Built | None:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        if choice >= len(self._costs(weight)):
            return None
        factors, terms = self._factors_of(weight), self._terms or choice + 1
        split = split_off(
            weight,
            factors,
            terms,
            permuted=self._permuted,
            seconds=self._seconds,
            seed=self._seed,
            name="the weight",
        )
        if self._calibrated and moments is not None:
            split = _fitted(weight, split, moments)
        split = replace(split, cores=tuple(core.to(weight.dtype) for core in split.cores))
        layer = (
            PermutedLinear.from_split(split, bias)
            if self._permuted
            else MPOLinear.from_chains(MPOChain(split.cores, split.spec), bias)
        )
        errors = errors_between(weight, moments, layer.weight) if self._calibrated and moments is not None else None
        return Built(layer, errors)

    def _factors_of(self, weight: Tensor) -> list[tuple[int, int]]:
        if self._factors is not None:
            return self._factors
        out, in_ = weight.shape
        return [(_SHORT, _SHORT) if out == in_ else (_LONG, _SHORT) if out > in_ else (_SHORT, _LONG)]

    def _costs(self, weight: Tensor) -> NDArray[np.int64]:
        """Of one term and more, while they are fewer than the matrix has entries; none if the factors do not fit."""
        out, in_ = _shape(weight)
        factors = self._factors_of(weight)
        if self._factors is None and (out % factors[0][0] or in_ % factors[0][1]):
            return np.empty(0, dtype=np.int64)
        # Where each row and column is found: four bytes each.
        orders = -(-4 * (out + in_) // weight.element_size()) if self._permuted else 0
        one = split_spec((out, in_), factors, 1)
        if self._terms is not None:
            terms = np.array([split_spec((out, in_), factors, self._terms).bonds[0]])
        else:
            terms = np.arange(1, min(one.out_dims[0] * one.in_dims[0], one.out_dims[1] * one.in_dims[1]))
        costs = terms * one.parameters + orders
        return costs[costs < weight.numel()]


def _shape(weight: Tensor) -> tuple[int, int]:
    return int(weight.shape[0]), int(weight.shape[1])


def _fitted(weight: Tensor, split: Split, moments: Moments) -> Split:
    """The chain for the same orders that is nearest on the calibration data."""
    assert moments.inputs is not None
    ordered = weight.detach()[split.rows][:, split.columns]
    gram = moments.inputs[split.columns][:, split.columns]
    found = calibrated(ordered, split.spec, gram, iterations=_ITERATIONS, name="the weight")
    large, *small = found.terms[0]
    # As :class:`~mpochain.decomposition.Split` has them, for the optimiser's sake.
    sizes = [float(core.square().mean().sqrt()) or 1.0 for core in small]
    cores = (large * math.prod(sizes), *(core / size for core, size in zip(small, sizes, strict=True)))
    return replace(split, cores=cores)
