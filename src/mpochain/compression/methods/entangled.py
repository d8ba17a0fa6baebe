"""Embeddings of products of the vectors of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpochain.compression.allocation import Curve, cheapest_within, uniform
from mpochain.compression.budget import error_budget, parameter_budget
from mpochain.compression.methods.method import Built, Method
from mpochain.compression.statistics.moments import Moments
from mpochain.errors import SpecError
from mpochain.nn.dense import weight_and_bias
from mpochain.nn.embeddings import EntangledEmbedding
from mpochain.nn.embeddings.fitting import fit_rows

__all__ = ["Entangled"]


class Entangled(Method):
    """Tables of embeddings as :class:`mpochain.EntangledEmbedding`, fitted to what they were.

    Without ``ranks``, so many that the table keeps its share of the parameters. How near the rows come is not known
    before they are fitted, so a budget that is an error cannot be met.

    Args:
        order: places of a word; for an index its number of columns.
        units: ``"digits"`` (word2ketXS), ``"own"`` (word2ket), or an index such as ``Units.of(...).index``.
        ranks: of the sum; None to go by the budget.
        coefficients: whether each word has a number for each rank.
        frequencies: how often each word occurs; frequent ones are fitted better.
        iterations: see :func:`mpochain.nn.embeddings.fitting.fit_rows`.
        seed: of the start.

    Example:
        >>> import mpochain as mpo
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 4))
        >>> report = mpo.compress(model, 0.5, method=Entangled(order=2))
        >>> report.parameters_after <= 0.5 * 1600, model[0].ranks
        (True, 10)
    """

    needs = "nothing"
    uniform = True
    linear = False
    embeddings = True

    def __init__(
        self,
        *,
        order: int | None = None,
        units: Tensor | NDArray[Any] | Literal["digits", "own"] = "digits",
        ranks: int | None = None,
        coefficients: bool = False,
        frequencies: Sequence[float] | Tensor | None = None,
        iterations: int = 200,
        seed: int = 0,
    ) -> None:
        self._units, self._order, self._ranks, self._coefficients = units, order, ranks, coefficients
        self._frequencies = None if frequencies is None else torch.as_tensor(frequencies)
        self._iterations, self._seed = iterations, seed
        self.settled = ranks is not None

    def curve(self, weight: Tensor, moments: Moments | None) -> Curve:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`."""
        costs = np.append(self._costs(weight), weight.numel())
        # What is left out is not known before it is fitted; a budget of parameters does not ask.
        return Curve(costs, np.zeros(len(costs)))

    def require_fit(self, layers: Mapping[str, nn.Module], budget: float | str) -> None:
        """Find out before any work whether tables can be made as small as a budget asks for.

        Raises:
            SpecError: they cannot, or the budget is an error.
        """
        curves = {name: self.curve(weight_and_bias(layer, name)[0], None) for name, layer in layers.items()}
        error = error_budget(budget)
        if error is not None:
            cheapest_within(curves, error)
        else:
            uniform(curves, parameter_budget(budget, layers))

    def build(self, weight: Tensor, bias: Tensor | None, moments: Moments | None, choice: int) -> Built | None:  # noqa: ARG002
        """See :class:`~mpochain.compression.methods.method.Method`."""
        if choice >= len(self._costs(weight)):
            return None
        # What is fitted needs gradients, whoever calls.
        with torch.inference_mode(False):
            wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._seed)
                made = self._made(weight, self._ranks or choice + 1, "cpu", wide.dtype)
                made.reset_parameters(float(wide.square().mean().sqrt()) or 1.0)
            made.to(weight.device)
            fit_rows(made, wide, frequencies=self._frequencies, iterations=self._iterations)
            return Built(made.to(weight.dtype), None)

    def _made(self, weight: Tensor, ranks: int, device: str, dtype: torch.dtype) -> EntangledEmbedding:
        return EntangledEmbedding(
            weight.shape[0],
            weight.shape[1],
            order=self._order,
            ranks=ranks,
            units=self._units,
            coefficients=self._coefficients,
            device=device,
            dtype=dtype,
        )

    def _costs(self, weight: Tensor) -> NDArray[np.int64]:
        """Of one rank and more, or of those that were given, while they are fewer than the table has entries."""
        one = self._made(weight, 1, "meta", torch.float32)
        each = sum(parameter.numel() for parameter in one.parameters())
        # Which units each word is made of: four bytes each.
        index = 0 if one.index is None else -(-4 * one.index.numel() // weight.element_size())
        ranks = np.array([self._ranks]) if self._ranks is not None else np.arange(1, weight.numel() // each + 1)
        costs = ranks * each + index
        costs = costs[costs < weight.numel()]
        if not len(costs):
            raise SpecError(
                f"products of {one.unit_count:,} units are no smaller than a table {weight.shape[0]}x{weight.shape[1]} "
                f"({each:,} parameters for a rank, and an index); have more words share a unit, or give a higher order"
            )
        return costs
