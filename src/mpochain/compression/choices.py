"""Choices for one layer: cost, error and builder of every possible replacement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpochain.compression.allocation import Curve
from mpochain.compression.costs import Cost, Costs
from mpochain.compression.statistics.projections import Errors
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError
from mpochain.nn import CompressedLayer
from mpochain.wording import counted

__all__ = ["Built", "Choices"]

_Values = NDArray[Any]
# Returns the errors of all choices and the error of the zero matrix, the reference of relative errors; None if unknown.
_ErrorSource = Callable[[], tuple[_Values, float | None]]


@dataclass(frozen=True)
class Built:
    """A compressed layer and its errors on the calibration data.

    Attributes:
        layer: replacement of the dense layer. For an embedding, an :class:`mpochain.nn.RowEmbedding` or a layer that
            :meth:`mpochain.MPOEmbedding.of` accepts as its table.
        errors: errors on the calibration data; None for methods without data.
    """

    layer: CompressedLayer
    errors: Errors | None = None


class Choices:
    """Possible replacements of one layer; the last choice is the unchanged dense layer.

    Args:
        costs: costs of the ``n`` choices, the dense layer last.
        errors: ``(n,)``, error of each choice, 0 for the dense layer: an increase of the loss or a squared norm, so
            that the errors of layers add up. Or a function that returns this array and ``zero_error``; it is called
            when the errors are first needed, and never for settled methods or refits. None if errors are unknown
            before a layer is built: such choices are ordered by cost alone and cannot meet an error budget.
        build: function from the index of a choice to its layer; it returns None for the dense layer, and may hold a
            fit.
        unit: unit of the errors; only errors in the same unit are compared.
        zero_error: error of the zero matrix in the same unit; None if unknown. Error budgets need it.
        held_bytes: memory that ``build`` holds beyond the dense weight and the moments, such as a fit.
        reason: why there is no smaller choice than the dense layer, for the report; None for the general reason that
            no choice of the method is smaller than the weight.

    Raises:
        ArgumentError: there are no choices, the numbers of errors and costs differ, or an error is negative or not
            finite.

    Example:
        >>> from torch import nn
        >>> from mpochain import InterpolativeLinear
        >>> target, layer = Target.open("up", nn.Linear(4, 4, bias=False)), InterpolativeLinear(4, 4, 1)
        >>> choices = Choices.of(target, Costs.of(target, [8], [8]), np.array([0.25]), lambda _: Built(layer))
        >>> len(choices), choices.costs.parameters, choices.errors, choices.build(1)
        (2, array([ 8, 16]), array([0.25, 0.  ]), None)
    """

    def __init__(
        self,
        costs: Costs,
        errors: _Values | _ErrorSource | None,
        build: Callable[[int], Built | None],
        *,
        unit: str = "nats per token",
        zero_error: float | None = None,
        held_bytes: int = 0,
        reason: str | None = None,
    ) -> None:
        if not len(costs):
            raise ArgumentError("a layer has at least one choice, the dense layer; got no costs")
        self.costs, self.unit, self.held_bytes, self.reason = costs, unit, held_bytes, reason
        self._source = errors if callable(errors) else None
        self._build = build
        self._errors: _Values | None = None
        self._zero_error: float | None = None
        if errors is None:
            self._keep(np.zeros(len(costs)), None)
        elif not callable(errors):
            self._keep(errors, zero_error)

    @classmethod
    def of(
        cls,
        target: Target,
        costs: Costs,
        errors: _Values | _ErrorSource | None,
        build: Callable[[int], Built | None],
        *,
        unit: str = "nats per token",
        zero_error: float | None = None,
        held_bytes: int = 0,
        reason: str | None = None,
    ) -> Choices:
        """Choices from the costs, errors and builder of the smaller ones; the dense layer is added as the last.

        Args:
            target: the dense layer.
            costs: costs of the smaller choices.
            errors: errors of the smaller choices, see :class:`Choices`.
            build: builder of the smaller choices; it is not called for the dense layer.
            unit: see :class:`Choices`.
            zero_error: see :class:`Choices`.
            held_bytes: see :class:`Choices`.
            reason: see :class:`Choices`.
        """
        dense = Costs(
            np.array([target.parameters]), np.array([target.bytes]), np.array([target.macs]), target.element_size
        )

        def with_dense(source: _ErrorSource) -> _ErrorSource:
            def both() -> tuple[_Values, float | None]:
                values, zero = source()
                return np.append(values, 0.0), zero

            return both

        if callable(errors):
            extended: _Values | _ErrorSource | None = with_dense(errors)
        else:
            extended = None if errors is None else np.append(errors, 0.0)
        return cls(
            Costs.joined(costs, dense),
            extended,
            lambda choice: None if choice >= len(costs) else build(choice),
            unit=unit,
            zero_error=zero_error,
            held_bytes=held_bytes,
            reason=reason,
        )

    def __len__(self) -> int:
        return len(self.costs)

    def __or__(self, other: Choices) -> Choices:
        return Choices.joined(self, other)

    @staticmethod
    def joined(*parts: Choices) -> Choices:
        """Join the choices of several methods for one layer into one list, with one dense layer at the end.

        Args:
            parts: choices of one layer, with errors in the same unit.

        Raises:
            ArgumentError: there is nothing to join, or the errors have different units.

        Example:
            >>> from torch import nn
            >>> from mpochain.compression import METHODS
            >>> target = Target.open("up", nn.Linear(16, 16))
            >>> low_rank, chains = (METHODS[name].prepare(target, None) for name in ("svd", "tt_svd"))
            >>> both = low_rank | chains
            >>> len(low_rank), len(chains), len(both), both.build(len(both) - 1)
            (8, 8, 15, None)
        """
        if not parts:
            raise ArgumentError("there are no choices to join")
        units = {part.unit for part in parts}
        if len(units) != 1:
            raise ArgumentError(f"errors in different units cannot be compared, got {', '.join(sorted(units))}")
        costs = Costs.joined(*(part.costs[:-1] for part in parts), parts[0].costs[-1:])
        starts = np.cumsum([0, *(len(part) - 1 for part in parts)])

        def errors() -> tuple[_Values, float | None]:
            zeros = [part.zero_error for part in parts]
            values = np.concatenate([*(part.errors[:-1] for part in parts), parts[0].errors[-1:]])
            return values, next((zero for zero in zeros if zero is not None), None)

        def build(choice: int) -> Built | None:
            if choice >= starts[-1]:
                return None
            part = int(np.searchsorted(starts, choice, side="right")) - 1
            return parts[part].build(choice - int(starts[part]))

        held_bytes = sum(part.held_bytes for part in parts)
        reason = next((part.reason for part in parts if part.reason is not None), None)
        return Choices(costs, errors, build, unit=parts[0].unit, held_bytes=held_bytes, reason=reason)

    @property
    def errors(self) -> NDArray[np.float64]:
        """``(n,)``, the error of each choice in ``unit``; zeros if errors are unknown before a layer is built."""
        return self._known()[0]

    @property
    def zero_error(self) -> float | None:
        """Error of the zero matrix; None if errors are unknown before a layer is built."""
        return self._known()[1]

    def curve(self, cost: Cost | Mapping[Cost, float] = "bytes") -> Curve:
        """Costs and errors as a :class:`Curve`, for :func:`mpochain.compression.allocate`.

        Args:
            cost: name of a cost, or prices of several, see :meth:`Costs.by`.
        """
        return Curve(self.costs.by(cost), self.errors, self.zero_error, self.costs.macs)

    def build(self, choice: int) -> Built | None:
        """Build the layer of one choice; None for the unchanged dense layer.

        Raises:
            ArgumentError: there is no choice of this index.
        """
        if not 0 <= choice < len(self):
            raise ArgumentError(f"expected the index of one of {counted(len(self), 'choice')}, got {choice}")
        return self._build(choice)

    def _known(self) -> tuple[NDArray[np.float64], float | None]:
        if self._errors is None:
            assert self._source is not None
            self._keep(*self._source())
            self._source = None  # frees arrays that only the errors needed
        assert self._errors is not None
        return self._errors, self._zero_error

    def _keep(self, errors: _Values, zero_error: float | None) -> None:
        values = np.asarray(errors, dtype=np.float64)
        if values.shape != (len(self.costs),):
            raise ArgumentError(
                f"{counted(len(self.costs), 'choice')} must have as many errors, got shape {values.shape}"
            )
        if not np.isfinite(values).all() or (values < 0).any():
            raise ArgumentError("errors must be finite and not negative")
        self._errors, self._zero_error = values, zero_error
