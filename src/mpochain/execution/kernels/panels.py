"""Panels kernel: the matrix rebuilt a panel of rows at a time, every panel used while it is in cache."""

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
    """The last merge and the product, a panel of its left core's out entries at a time; without gradients."""

    takes_cores = True

    def __call__(self, program: Program, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
        """``x`` times one panel after another."""
        dtype, merged = autocast_dtype(x), list(operands)
        if dtype is not None:
            # A product into an existing output is not on autocast's list.
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
        """With the bias added in place."""
        y = super().run(program, x, operands, None, onto)
        return y if bias is None or onto is not None else y.add_(bias)
