"""Panels kernel: the dense matrix is rebuilt in panels of rows, each used while it is in cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mpochain.execution.autocast import autocast_dtype
from mpochain.execution.kernels.kernel import Kernel
from mpochain.execution.program import TORCH, Program
from mpochain.planning import MergeStep
from mpochain.planning.kernel_models import PanelsModel

__all__ = ["Panels"]


class Panels(PanelsModel, Kernel):
    """The last merge and the product, in panels along the out dim of the left core; without gradients."""

    takes_cores = True

    def __call__(self, program: Program, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
        """Multiply ``x`` by one panel after the other."""
        dtype, merged = autocast_dtype(x), list(operands)
        if dtype is not None:
            # Autocast does not cast the arguments of products with ``out=``.
            x, merged = x.to(dtype), [core.to(dtype) for core in merged]
        *earlier, last = program.schedule.merges
        for step in earlier:
            k = step.position
            merged[k : k + 2] = [step(merged[k], merged[k + 1], TORCH)]
        left, right = merged
        (r, o, i, s), p = last.left, last.right[1]
        padded_out, padded_in = program.schedule.spec.padded_shape
        y = x.new_empty(x.shape[0], padded_out)
        panel = program.options["panel"]
        for start in range(0, o, panel):
            stop = min(start + panel, o)
            rows = MergeStep(0, (r, stop - start, i, s), last.right)(left[:, start:stop], right, TORCH)
            torch.mm(x, rows.reshape((stop - start) * p, padded_in).t(), out=y[:, start * p : stop * p])
        return y

    def run(
        self,
        program: Program,
        x: Tensor,
        operands: Sequence[Tensor],
        bias: Tensor | None = None,
        onto: Tensor | None = None,
    ) -> Tensor:
        """See ``Kernel.run``; adds the bias in place."""
        y = super().run(program, x, operands, None, onto)
        return y if bias is None or onto is not None else y.add_(bias)
