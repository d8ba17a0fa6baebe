"""Autograd kernel: a sweep whose states autograd saves, which is less work than recomputing them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from mpochain.execution.kernels.kernel import Kernel
from mpochain.execution.program import Program
from mpochain.planning.kernel_models import AutogradModel

__all__ = ["Autograd"]


class Autograd(AutogradModel, Kernel):
    """The steps of the sweep as plain products with all rows at once."""

    def __call__(self, program: Program, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
        """Run one product per step."""
        rows, state = x.shape[0], x
        for matrix, (_, c, a, p, _) in zip(operands, program.steps, strict=True):
            state = F.linear(state.reshape(rows * p, c), matrix) if a == 1 else matrix @ state.reshape(rows * p, c, a)
        return state.reshape(rows, program.schedule.spec.padded_shape[0])
