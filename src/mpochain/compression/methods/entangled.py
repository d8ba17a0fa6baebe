"""Embeddings as sums of tensor products of unit vectors (word2ket, word2ketXS and custom units)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from mpochain.arrays import norm
from mpochain.compression.allocation import cheapest_within, uniform
from mpochain.compression.budget import byte_budget, error_budget
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


def _tensor(values: Any) -> Tensor:
    # Not on the default device, which may hold no values.
    return values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")


class Entangled(Method):
    """Embedding tables as :class:`mpochain.EntangledEmbedding`, fitted to the dense rows.

    Without ``ranks``, the budget sets the number of terms. The errors are unknown before the fit, so an error budget
    is refused.

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

        order: int | None = Field(None, description="number of units per word; for an index its number of columns")
        units: Annotated[Any, BeforeValidator(_known_units)] = Field(
            "digits",
            description="'digits' (word2ketXS), 'own' (word2ket), or an index (words, order) such as "
            "Units.of(...).index",
        )
        ranks: Annotated[int, Field(ge=1)] | None = Field(
            None, description="number of terms of the sum; by default the budget decides"
        )
        coefficients: bool = Field(False, description="give each word one coefficient per rank (SEE)")
        frequencies: Any = Field(None, description="how often each word occurs; frequent words are fitted better")
        iterations: Annotated[int, Field(ge=1)] = Field(200, description="iterations of the fit")
        seed: int = Field(0, description="seed of the initial values")

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
        """Refuse error budgets, and budgets smaller than a table can become.

        Raises:
            ArgumentError: no table can become smaller, the budget cannot be met, or it is an error budget.
        """
        choices = {name: self.prepare(target, None) for name, target in targets.items()}
        reasons = [offered.reason for offered in choices.values()]
        if None not in reasons:
            raise ArgumentError(f"{next(iter(choices))} cannot become smaller: {reasons[0]}")
        curves = {name: offered.curve() for name, offered in choices.items()}
        if budget is None:
            return
        error = error_budget(budget)
        if error is not None:
            cheapest_within(curves, error)
        else:
            uniform(curves, byte_budget(budget, targets))

    def smallest(self, target: Target) -> int:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return int(self.prepare(target, None).costs.bytes.min())

    def prepare(self, target: Target, moments: Moments | None) -> Choices:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`; errors are unknown before rows are fitted."""
        one = self._embedding(target, 1, "meta", torch.float32)
        per_rank = sum(parameter.numel() for parameter in one.parameters())
        # The index stores the units of each word, four bytes per unit.
        index_bytes = 0 if one.index is None else 4 * one.index.numel()
        chosen = self.settings.ranks
        ranks = np.arange(1, target.parameters // per_rank + 1) if chosen is None else np.array([chosen])
        costs = Costs.of(target, ranks * per_rank, ranks * one.macs(), index_bytes=index_bytes)
        costs = costs[: int(np.searchsorted(costs.elements, target.parameters))]
        reason = None
        if not len(costs):
            rows, columns = target.shape
            reason = (
                f"products of {one.unit_count:,} units are no smaller than the {rows}x{columns} table "
                f"({per_rank:,} parameters per rank, plus an index); let more words share a unit, or give a higher "
                "order"
            )
        return Choices.of(target, costs, None, lambda choice: self._built(target, chosen or choice + 1), reason=reason)

    def _built(self, target: Target, ranks: int) -> Built:
        weight = target.weight
        # The fit needs gradients, also for a caller in inference mode.
        with torch.inference_mode(False):
            table = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.settings.seed)
                embedding = self._embedding(target, ranks, "cpu", table.dtype)
                embedding.reset_parameters(norm(table) / math.sqrt(table.numel()) or 1.0)
            embedding.to(weight.device)
            frequencies = self.settings.frequencies
            fit_rows(
                embedding,
                table,
                frequencies=None if frequencies is None else _tensor(frequencies),
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
