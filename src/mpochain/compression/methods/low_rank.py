"""Truncated SVD into two factors, of the weight alone or with truncation-aware whitening (SVD-LLM)."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mpochain import shapes
from mpochain.chain import MPOChain
from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.methods.method import Method, MethodSettings
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import fit
from mpochain.compression.target import Target
from mpochain.decomposition import equalised
from mpochain.nn import MPOLinear

__all__ = ["LowRank"]


class LowRank(Method):
    """Factors ``(out, r)`` and ``(r, in)``; every layer keeps the same share of its parameters.

    Source of the whitening: SVD-LLM, arXiv 2403.07378.

    Args:
        settings: see :class:`LowRank.Settings`.
        values: fields of the settings.

    Example:
        >>> import mpochain as mpo
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64))
        >>> mpo.compress(model, 0.5, method=LowRank(weighted=False)).parameters_after
        2048
    """

    class Settings(MethodSettings):
        """Settings of :class:`LowRank`."""

        weighted: bool = Field(
            True, description="minimise the error of the outputs, which needs data, instead of the weight's"
        )

    settings: Settings
    uniform = True

    def __init__(self, settings: Settings | None = None, /, **values: object) -> None:
        super().__init__(settings, **values)
        weighted = self.settings.weighted
        self.name = "svd_llm" if weighted else "svd"
        self.needs = "inputs" if weighted else "nothing"
        self.embeddings = not weighted

    def smallest(self, target: Target) -> int:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return min(sum(target.shape), target.parameters) * target.element_size

    def prepare(self, target: Target, moments: Moments | None) -> Choices:
        """See :class:`~mpochain.compression.methods.method.Method`; errors are squared norms."""
        out, in_ = target.shape
        weighted = self.settings.weighted and moments is not None
        projections = fit(target.weight, moments if weighted else None)
        ranks = np.arange(1, len(projections.errors))
        ranks = ranks[ranks * (out + in_) < out * in_]  # only ranks whose two factors are smaller than the matrix

        def build(choice: int) -> Built:
            rank = choice + 1
            spec = shapes.low_rank(out, in_, rank)
            # Of equal norms, so that neither factor leaves the range of a short type.
            factors = equalised(projections.factors(target.weight, rank))
            cores = tuple(
                factor.to(target.weight.dtype).reshape(shape)
                for factor, shape in zip(factors, spec.core_shapes, strict=True)
            )
            errors = projections.errors_of(target.weight, moments, rank) if moments is not None else None
            return Built(MPOLinear.from_chains(MPOChain(cores, spec), target.bias), errors)

        one = target.chain_macs(shapes.low_rank(out, in_, 1))
        return Choices.of(
            target,
            Costs.of(target, ranks * (out + in_), ranks * one),
            projections.errors[ranks],
            build,
            unit="squared norm of the outputs" if weighted else "squared norm of the weight",
            zero_error=float(projections.errors[0]),
            held_bytes=projections.bytes,
        )
