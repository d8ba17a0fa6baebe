"""Embeddings of products of the vectors of units (word2ket, word2ketXS and tables of units)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from mpochain.compression.allocation import cheapest_within, uniform
from mpochain.compression.budget import error_budget, parameter_budget
from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.methods.method import Method, MethodSettings
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError
from mpochain.nn.embeddings import EntangledEmbedding
from mpochain.nn.embeddings.fitting import fit_rows

__all__ = ["Entangled"]


def _known_units(value: Any) -> Any:
    if isinstance(value, str) and value not in ("digits", "own"):
        raise ValueError("give 'digits', 'own' or an index of integers (words, order)")
    return value


class Entangled(Method):
    """Tables of embeddings as :class:`mpochain.EntangledEmbedding`, fitted to their dense rows.

    Without ``ranks``, the table keeps its share of the parameters. How near the rows come is unknown before they are
    fitted, so a budget that is an error cannot be met.

    Args:
        settings: see :class:`Entangled.Settings`.
        values: fields of the settings.

    Example:
        >>> import mpochain as mpo
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 4))
        >>> report = mpo.compress(model, 0.5, method=Entangled(order=2))
        >>> report.method, report.parameters_after <= 0.5 * 1600, model[0].ranks
        ('word2ketxs', True, 10)
    """

    class Settings(MethodSettings):
        """Settings of :class:`Entangled`."""

        order: int | None = Field(None, description="places of a word; for an index its number of columns")
        units: Annotated[Any, BeforeValidator(_known_units)] = Field(
            "digits",
            description="'digits' (word2ketXS), 'own' (word2ket), or an index (words, order) as of Units.of(...).index",
        )
        ranks: Annotated[int, Field(ge=1)] | None = Field(
            None, description="number of terms of the sum; by default the budget decides"
        )
        coefficients: bool = Field(False, description="whether each word has a number for each rank (SEE)")
        frequencies: Any = Field(None, description="how often each word occurs; frequent ones are fitted better")
        iterations: Annotated[int, Field(ge=1)] = Field(200, description="iterations of the fit")
        seed: int = Field(0, description="seed of the start")

    settings: Settings
    uniform = True
    linear = False
    embeddings = True

    def __init__(self, settings: Settings | None = None, /, **values: object) -> None:
        super().__init__(settings, **values)
        units = self.settings.units
        names = {"digits": "word2ketxs", "own": "word2ket"}
        self.name = names.get(units, "entangled") if isinstance(units, str) else "entangled"
        self.settled = self.settings.ranks is not None

    def check(self, targets: Mapping[str, Target], budget: float | str | None) -> None:
        """Refuse tables that cannot become as small as the budget asks for.

        Raises:
            ArgumentError: a budget that cannot be met, or that is an error.
        """
        curves = {name: self.prepare(target, None).curve() for name, target in targets.items()}
        if budget is None:
            return
        error = error_budget(budget)
        if error is not None:
            cheapest_within(curves, error)
        else:
            uniform(curves, parameter_budget(budget, targets))

    def prepare(self, target: Target, moments: Moments | None) -> Choices:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`; errors are unknown before rows are fitted."""
        one = self._embedding(target, 1, "meta", torch.float32)
        per_rank = sum(parameter.numel() for parameter in one.parameters())
        # The units of each word, four bytes each.
        index_bytes = 0 if one.index is None else 4 * one.index.numel()
        chosen = self.settings.ranks
        ranks = np.arange(1, target.parameters // per_rank + 1) if chosen is None else np.array([chosen])
        costs = Costs.of(target, ranks * per_rank, ranks * one.macs(), index_bytes=index_bytes)
        costs = costs[: int(np.searchsorted(costs.elements, target.parameters))]
        if not len(costs):
            rows, columns = target.shape
            raise ArgumentError(
                f"products of {one.unit_count:,} units are no smaller than a table {rows}x{columns} "
                f"({per_rank:,} parameters for a rank, and an index); have more words share a unit, or give a higher "
                "order"
            )
        return Choices.of(target, costs, None, lambda choice: self._built(target, chosen or choice + 1))

    def _built(self, target: Target, ranks: int) -> Built:
        weight = target.weight
        # The fit needs gradients, also for a caller in inference mode.
        with torch.inference_mode(False):
            table = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.settings.seed)
                embedding = self._embedding(target, ranks, "cpu", table.dtype)
                embedding.reset_parameters(float(table.square().mean().sqrt()) or 1.0)
            embedding.to(weight.device)
            frequencies = self.settings.frequencies
            fit_rows(
                embedding,
                table,
                frequencies=None if frequencies is None else torch.as_tensor(frequencies),
                iterations=self.settings.iterations,
            )
            return Built(embedding.to(weight.dtype))

    def _embedding(self, target: Target, ranks: int, device: str, dtype: torch.dtype) -> EntangledEmbedding:
        rows, columns = target.shape
        units: Tensor | Literal["digits", "own"] = self.settings.units
        return EntangledEmbedding(
            rows,
            columns,
            order=self.settings.order,
            ranks=ranks,
            units=units,
            coefficients=self.settings.coefficients,
            device=device,
            dtype=dtype,
        )
