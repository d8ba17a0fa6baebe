"""Running sums of second moments over calibration batches, one set per layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.statistics.recompute import Recomputation
from mpochain.errors import MPOError, NonFiniteError
from mpochain.nn.dense import dense_parameters

__all__ = ["LastInput", "Slabs", "Sums"]

_SLAB = 1 << 24  # float32 numbers; the allocator returns freed blocks of this size to the system


class LastInput:
    """The latest input of any layer, and the name of that layer."""

    def __init__(self) -> None:
        self.x: Tensor | None = None
        self.name = ""

    def clear(self) -> None:
        """Drop the input before the next batch."""
        self.x = None


class Slabs:
    """Memory for the sums in large blocks, separate from the short-lived arrays of each batch.

    Sums of a megabyte each, allocated one by one between activations, fragmented the heap by as much as their total
    size.
    """

    def __init__(self) -> None:
        self._free: dict[torch.device, Tensor] = {}

    def square(self, rows: Tensor) -> Tensor:
        """Allocate zeros ``(n, n)`` for rows of length ``n``."""
        size = rows.shape[1] ** 2
        free = self._free.get(rows.device)
        if free is None or len(free) < size:
            free = torch.zeros(max(_SLAB, size), dtype=torch.float32, device=rows.device)
        self._free[rows.device] = free[size:]
        return free[:size].view(rows.shape[1], -1)


class Sums:
    """Running sums of one layer."""

    def __init__(self, name: str, layer: nn.Module, inputs: bool, slabs: Slabs) -> None:
        self.name, self.owner = name, name
        self._slabs = slabs
        self.weight = dense_parameters(layer, name)[0].detach()
        self.is_wide = self.weight.shape[0] <= self.weight.shape[1]
        self.keeps_inputs = inputs or not self.is_wide
        self.rows = 0
        self.inputs: Tensor | None = None
        self.outputs: Tensor | None = None
        self.gradients: Tensor | None = None
        self.input_power = self.gradient_power = 0.0

    def before(
        self, last: LastInput, again: Recomputation, gradients: bool
    ) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
        """Return a forward pre-hook that adds the inputs."""

        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            x = arguments[0]
            if not again.active:
                self._add_input(x, last)
            if gradients and not x.requires_grad:
                # Parameters are frozen, so the graph must start at the inputs of the first target layers.
                return (x.detach().requires_grad_(), *arguments[1:])
            return None

        return hook

    def _add_input(self, x: Tensor, last: LastInput) -> None:
        rows = x.detach().reshape(-1, x.shape[-1])
        if not self.keeps_inputs:
            self.outputs = self._added(self.outputs, rows @ self.weight.T)
        else:
            owner = last.name if last.x is x else self.name
            if self.rows and self.owner != owner:
                raise MPOError(
                    f"{self.name} shares its input with another layer in some calibration batches but not in others; "
                    "give batches of one kind only"
                )
            self.owner = owner
            if owner == self.name:
                self.inputs = self._added(self.inputs, rows)
                last.x, last.name = x, self.name
        self.rows += rows.shape[0]
        self.input_power += float(rows.float().square().mean(1).sum())

    def after(self, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        """Forward hook that adds the gradients with respect to the outputs."""
        if output.requires_grad:
            output.register_hook(self._add_gradient)

    def _add_gradient(self, gradient: Tensor) -> None:
        rows = gradient.detach().reshape(-1, gradient.shape[-1])
        self.gradients = self._added(self.gradients, rows if self.is_wide else rows @ self.weight)
        self.gradient_power += float(rows.float().square().mean(1).sum())

    def _added(self, total: Tensor | None, rows: Tensor) -> Tensor:
        rows = rows.float()
        total = self._slabs.square(rows) if total is None else total
        return total.addmm_(rows.T, rows)

    def require_finite(self, batch: int) -> None:
        """Raise if the inputs or gradients held NaN or infinite entries, which show in the sums of squares."""
        for label, power in (("inputs", self.input_power), ("gradients", self.gradient_power)):
            if not math.isfinite(power):
                raise NonFiniteError(
                    f"calibration batch {batch}: the {label} of {self.name} contain NaN or infinite numbers; check "
                    "the batch, or run the model in float32"
                )

    def divide(self) -> None:
        """Turn sums into means."""
        for total in (self.inputs, self.outputs, self.gradients):
            if total is not None:
                total /= self.rows
