"""Running sums of second moments over calibration batches, one set per layer."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.arrays import in_range, ldexp
from mpochain.compression.statistics.recompute import Recomputation
from mpochain.compression.statistics.square_sum import Slabs, SquareSum, unit_rows
from mpochain.errors import NonFiniteError
from mpochain.nn import SeparateExperts
from mpochain.nn.dense import dense_parameters
from mpochain.surgery.masks import Masks

__all__ = ["InputMoments", "LatestInput", "Sums", "input_argument", "observed", "tokens_counted"]


class LatestInput:
    """Tells whether a layer reads the same input as the layer before.

    Inputs are the same if they lie at the same place in memory and hold the same numbers. The object alone would not
    tell: models add to their hidden states in place, and code outside of torch can write to any tensor. The numbers
    are compared by their products with a random vector, one per row.
    """

    def __init__(self) -> None:
        self._place: tuple[Any, ...] = ()
        self._products: Tensor | None = None

    def is_same(self, rows: Tensor) -> bool:
        """Whether the rows ``(n, in)`` are those of the latest call; they become the latest input."""
        unit, exponent = unit_rows(rows)
        place = (rows.data_ptr(), rows.shape, rows.stride(), rows.dtype, rows.device, exponent)
        products = unit @ _direction(rows.shape[1]).to(rows.device)
        same = self._products is not None and place == self._place and torch.equal(products, self._products)
        self._place, self._products = place, products
        return same


class InputMoments:
    """Second moments of the latest input, kept for further layers that read the same input."""

    def __init__(self) -> None:
        self._latest = LatestInput()
        self._kept: Tensor | None = None
        self._moments: Tensor | None = None
        self._exponent = 0
        self._number = 0

    def of(self, rows: Tensor, kept: Tensor | None) -> tuple[Tensor, int, int]:
        """The sum ``(in, in)`` over the rows ``(n, in)`` that are kept, its power of two, and the input's number."""
        same = self._latest.is_same(rows)
        if self._moments is None or not same or kept is not self._kept:
            unit, exponent = unit_rows(rows if kept is None else rows[kept])
            self._moments, self._exponent, self._kept = unit.T @ unit, 2 * exponent, kept
            self._number += 1
        return self._moments, self._exponent, self._number

    def clear(self) -> None:
        """Free the moments of the latest input."""
        self._moments = self._kept = None


@functools.cache
def _direction(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator("cpu").manual_seed(size), dtype=torch.float32, device="cpu")


class Sums:
    """Running sums of one layer.

    Args:
        name: name of the layer in the model.
        layer: the dense layer.
        inputs: whether the moments of the inputs are summed even if the inputs are the larger side.
        outputs: whether those of the gradients with respect to the outputs are summed in full even if the outputs are
            the larger side.
        slabs: memory of the sums.

    Attributes:
        rows: number of rows summed.
        tokens: for an expert of a mixture, the number of rows that the mixture read; 0 for other layers.
        has_gradients: whether gradients were summed.
        history: identifies the inputs summed; layers that read the same inputs in the same order have the same.
    """

    def __init__(self, name: str, layer: nn.Module, inputs: bool, outputs: bool, slabs: Slabs) -> None:
        self.name = name
        self.weight = dense_parameters(layer, name)[0].detach()
        self.is_wide = self.weight.shape[0] <= self.weight.shape[1]
        self.keeps_inputs = inputs or not self.is_wide
        self.keeps_outputs = outputs or self.is_wide
        self.rows = self.tokens = 0
        self.history = 0
        self.has_gradients = False
        self.input_sum, self.output_sum, self.gradient_sum = SquareSum(slabs), SquareSum(slabs), SquareSum(slabs)
        self.input_power = self.gradient_power = 0.0
        self._finite = {"inputs": True, "gradients": True}

    def add_input(self, x: Tensor, kept: Tensor | None, latest: InputMoments) -> None:
        """Add the inputs ``(..., in)`` of one call.

        Args:
            x: the inputs.
            kept: which rows count, bool, one entry per row; None for all.
            latest: moments of the latest input of any layer.
        """
        every = x.detach().reshape(-1, x.shape[-1])
        rows = every if kept is None else every[kept]
        if self.keeps_inputs:
            moments, exponent, number = latest.of(every, kept)
            self.input_sum.add(moments, exponent)
            self.history = hash((self.history, number))
        else:
            _add_products(self.output_sum, rows, self.weight.T)
        self.rows += rows.shape[0]
        self.input_power += self._power(rows, "inputs")

    def add_gradient(self, kept: Tensor | None, gradient: Tensor) -> None:
        """Add the gradients ``(..., out)`` with respect to the outputs of one call."""
        rows = gradient.detach().reshape(-1, gradient.shape[-1])
        rows = rows if kept is None else rows[kept]
        self.has_gradients = True
        _add_products(self.gradient_sum, rows, None if self.keeps_outputs else self.weight)
        self.gradient_power += self._power(rows, "gradients")

    def _power(self, rows: Tensor, label: str) -> float:
        """Sum of the mean squares of all rows."""
        unit, exponent = unit_rows(rows)
        power = float(unit.square().mean(1).sum())
        self._finite[label] &= math.isfinite(power)
        return ldexp(power, 2 * exponent)

    def require_finite(self, batch: int) -> None:
        """Raise if the inputs or gradients held NaN or infinite entries, which show in the sums of squares."""
        for label, power in (("inputs", self.input_power), ("gradients", self.gradient_power)):
            if not self._finite[label]:
                raise NonFiniteError(
                    f"calibration batch {batch}: the {label} of {self.name} contain NaN or infinite numbers; check "
                    "the batch, or run the model in float32"
                )
            if not math.isfinite(power):
                raise NonFiniteError(
                    f"calibration batch {batch}: the squares of the {label} of {self.name} exceed float64; scale the "
                    "data or the loss down"
                )


def _add_products(total: SquareSum, rows: Tensor, factor: Tensor | None) -> None:
    """Add the squares of ``rows``, or of ``rows @ factor``."""
    unit, exponent = in_range(rows)
    if factor is not None:
        unit = unit @ factor
    unit, more = unit_rows(unit)
    total.add_rows(unit, exponent + more)


def input_argument(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[str | None, Any]:
    """The input of a call of a dense layer, and the keyword by which it was given; None for a positional input."""
    if arguments:
        return None, arguments[0]
    _, keyword, *_ = inspect.signature(type(layer).forward).parameters  # after self
    return keyword, named.get(keyword)


@contextmanager
def tokens_counted(
    name: str, mixture: SeparateExperts, sums: Iterable[Sums], again: Recomputation, masks: Callable[[], Masks]
) -> Iterator[None]:
    """Count the rows that a mixture of experts reads in the sums of its layers within this context.

    Args:
        name: name of the mixture in the model.
        mixture: the experts.
        sums: sums of layers of the experts.
        again: see :func:`observed`.
        masks: see :func:`observed`.
    """

    def count(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if not again.active:
            tokens = mixture.tokens_of(arguments[0])
            kept = masks().rows(name, (tokens, 1))
            for layer_sums in sums:
                layer_sums.tokens += tokens if kept is None else int(kept.sum())

    hook = mixture.register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def observed(
    layer: nn.Module,
    sums: Sums,
    latest: InputMoments,
    again: Recomputation,
    masks: Callable[[], Masks],
    gradients: bool,
) -> Iterator[None]:
    """Add all inputs and gradients of a layer to its sums within this context.

    The forward of the instance is wrapped, so that also calls of ``layer.forward`` and inputs given by keyword count,
    which hooks do not see.

    Args:
        layer: dense layer.
        sums: sums of the layer.
        latest: moments of the latest input of any layer.
        again: says whether a block is being recomputed, whose inputs were counted before.
        masks: returns the masks of the present batch.
        gradients: whether gradients with respect to the outputs are added.
    """
    inner: Any = layer.forward
    own = vars(layer).get("forward")

    def forward(*arguments: Any, **named: Any) -> Any:
        keyword, x = input_argument(layer, arguments, named)
        if not isinstance(x, Tensor):
            return inner(*arguments, **named)  # which says what is wrong
        kept = masks().rows(sums.name, x.shape)
        kept = kept if kept is None else kept.to(x.device)
        if not again.active:
            sums.add_input(x, kept, latest)
        if gradients and not x.requires_grad:
            # Parameters are frozen, so the graph must start at the inputs of the first target layers.
            x = x.detach().requires_grad_()
        output = inner(x, *arguments[1:], **named) if keyword is None else inner(**{**named, keyword: x})
        if gradients and output.requires_grad:
            output.register_hook(functools.partial(sums.add_gradient, kept))
        return output

    object.__setattr__(layer, "forward", forward)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(layer, "forward")
        else:
            object.__setattr__(layer, "forward", own)
