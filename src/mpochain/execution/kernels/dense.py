"""Dense kernel: all cores merged to the dense matrix, then one product."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mpochain.execution.kernels.kernel import Kernel
from mpochain.execution.program import Program
from mpochain.planning.kernel_models import DenseModel

__all__ = ["Dense"]


class Dense(DenseModel, Kernel):
    """``F.linear`` with the rebuilt matrix; in compiled graphs too."""

    graphs = ("eager", "compiled")

    def __call__(self, program: Program, x: Tensor, operands: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """Multiply ``x`` by the dense matrix."""
        return F.linear(x, operands[0])

    def run(
        self,
        program: Program,
        x: Tensor,
        operands: Sequence[Tensor],
        bias: Tensor | None = None,
        onto: Tensor | None = None,
    ) -> Tensor:
        """See ``Kernel.run``; adds the bias, or the sum of earlier terms, within the product."""
        matrix = operands[0]
        if program.is_padded or (onto is not None and not onto.dtype == x.dtype == matrix.dtype):
            return super().run(program, x, operands, bias, onto)
        return F.linear(x, matrix, bias) if onto is None else onto.addmm_(x, matrix.t())

    def bind(
        self, program: Program, operands: Sequence[Tensor], shape: torch.Size, bias: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        """See ``Kernel.bind``; one product with the cached matrix."""
        matrix = operands[0]
        if len(shape) == 2 and shape[0] <= program.machine.few_rows:
            transposed = matrix.t()
            if bias is None:
                return lambda x: torch.mm(x, transposed)
            return lambda x: torch.mm(x, transposed).add_(bias)
        return lambda x: F.linear(x, matrix, bias)
