"""Measured choice between the products of torch and the fused low-rank product, for layers of low rank."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mpochain.execution.autocast import autocast_dtype
from mpochain.execution.kernels.device import INTERPRETED
from mpochain.execution.kernels.low_rank import low_rank_product, takes_low_rank
from mpochain.execution.measurement import interleaved
from mpochain.execution.tracing import is_traced
from mpochain.planning.batches import batch_bucket

__all__ = ["LowRankChoice"]

# Seconds after which no further round of timing starts.
_BUDGET = 0.3

_Product = Callable[[Tensor, Tensor, Tensor], Tensor]


class LowRankChoice:
    """Whether the fused product is faster than torch's, measured at the first call of each batch size.

    Nothing is measured where the fused product does not run. In Triton's interpreter, which is for tests of values, it
    is always chosen. A compiled graph serves all batch sizes, so it takes the fused product if that was the faster one
    in all measurements before.
    """

    def __init__(self) -> None:
        self._faster: dict[tuple[int, bool, torch.dtype, torch.device], bool] = {}

    def product(
        self, by_torch: _Product, x: Tensor, rows: Tensor, coefficients: Tensor, place: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The product of an interpolative layer, ``(..., out)``.

        Args:
            by_torch: the same product by torch, as a function of ``x``, ``rows`` and ``coefficients``.
            x: the input; see :func:`~mpochain.execution.kernels.low_rank.low_rank_product` for it and all others.
            rows: right factor.
            coefficients: part of the left factor.
            place: places of the outputs.
            bias: added to the outputs.
        """

        def fused(x: Tensor, rows: Tensor, coefficients: Tensor) -> Tensor:
            return low_rank_product(x, rows, coefficients, place, bias)

        chosen = fused if self.takes_fused(by_torch, fused, x, rows, coefficients) else by_torch
        return chosen(x, rows, coefficients)

    def takes_fused(self, by_torch: _Product, fused: _Product, x: Tensor, rows: Tensor, coefficients: Tensor) -> bool:
        """Whether the fused product is to be called; measures both for a batch size that is new.

        Args:
            by_torch: see :meth:`product`.
            fused: the fused product, as a function of the three tensors.
            x: see :meth:`product`.
            rows: see :meth:`product`.
            coefficients: see :meth:`product`.
        """
        if not takes_low_rank(x, rows, coefficients) or not x.numel():
            return False
        if is_traced():
            compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
            return compiled and (INTERPRETED or (bool(self._faster) and all(self._faster.values())))
        if INTERPRETED:
            return True
        training = torch.is_grad_enabled()
        key = batch_bucket(x.numel() // x.shape[-1]), training, autocast_dtype(x) or x.dtype, x.device
        if key not in self._faster:
            leaves = [tensor.detach().clone().requires_grad_(training) for tensor in (x, rows, coefficients)]
            calls = [_step(call, leaves) for call in (by_torch, fused)]
            # Independent of the caller's hooks, such as those of checkpointing.
            with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
                torch_seconds, fused_seconds = interleaved(calls, x.device.type, budget=_BUDGET)
            self._faster[key] = fused_seconds < torch_seconds
        return self._faster[key]


def _step(product: _Product, leaves: list[Tensor]) -> Callable[[], object]:
    """A call of the product, and in training of its gradients."""
    x, rows, coefficients = leaves
    if not x.requires_grad:
        return lambda: product(x, rows, coefficients)

    def step() -> object:
        y = product(x, rows, coefficients)
        return torch.autograd.grad(y, leaves, torch.ones_like(y))

    return step
