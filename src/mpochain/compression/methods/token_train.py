"""Embeddings with one tensor train per row (TensorGPT)."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.methods.method import Method, MethodSettings
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.target import Target
from mpochain.nn.embeddings import TokenTrainEmbedding

__all__ = ["TokenTrain"]


class TokenTrain(Method):
    """TT-SVD of every row, with the largest bond that the budget allows.

    Source: TensorGPT, arXiv 2307.00526.

    Args:
        settings: see :class:`TokenTrain.Settings`.
        values: fields of the settings.

    Example:
        >>> import mpochain as mpo
        >>> model = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 4))
        >>> report = mpo.compress(model, 0.75, method=TokenTrain())
        >>> model[0].bonds
        (2, 2)
    """

    class Settings(MethodSettings):
        """Settings of :class:`TokenTrain`."""

        sites: int | None = Field(None, description="number of sites of the default dims; 3 by default")
        dims: tuple[int, ...] | None = Field(None, description="dims of the sites, instead of the default dims")

    settings: Settings
    uniform = True
    linear = False
    embeddings = True

    def smallest(self, target: Target) -> int:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return int(self.prepare(target, None).costs.bytes.min())

    def prepare(self, target: Target, moments: Moments | None) -> Choices:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`; errors are unknown before rows are decomposed."""
        rows, columns = target.shape
        sites, dims = self.settings.sites, self.settings.dims
        parameters, macs = [], []
        for bond in range(1, columns + 1):
            row = TokenTrainEmbedding(1, columns, bond, sites=sites, dims=dims, device="meta")
            size = rows * sum(core.numel() for core in row.cores)
            if size >= target.parameters:
                break
            parameters.append(size)
            macs.append(row.macs())

        def build(choice: int) -> Built:
            dense = nn.Embedding.from_pretrained(target.weight)
            return Built(TokenTrainEmbedding.from_embedding(dense, choice + 1, sites=sites, dims=dims))

        return Choices.of(target, Costs.of(target, parameters, macs), None, build)
