"""Kernel interface: runs a schedule in torch, and tells the planner which schedules and how fast."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mpochain.execution.program import Program
from mpochain.planning import KernelModel

__all__ = ["Kernel"]


class Kernel(KernelModel):
    """A way to run a schedule: ``name``, ``supports``, ``variants``, ``seconds`` for the planner, and the call itself.

    A subclass has at least ``name``, ``supports``, ``variants``, ``seconds`` and ``__call__``. It is
    chosen when a plan is made, and held by the program of the plan: nothing is asked when a layer is called.

    The call must be differentiable with respect to ``x`` and the operands wherever ``supports`` accepts
    ``mode="training"``, have results of the type that autocast gives, and take any number of rows, 0 included, since a
    plan serves all batches of its bucket.

    Attributes:
        takes_cores: whether the operands are the cores of the chain. Otherwise they are the matrices of the sweep
            (``program.matrices``), which may be kept between calls.

    Example:
        >>> from mpochain import ChainSpec, plan
        >>> from mpochain.execution import KERNELS
        >>> chosen = plan(ChainSpec((8, 16), (8, 16), 4), 32, kernels=list(KERNELS.values())).chosen
        >>> type(KERNELS[chosen.kernel]).__name__
        'Tiled'
    """

    takes_cores: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, program: Program, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
        """``x (rows, padded in)`` to ``(rows, padded out)``.

        Args:
            program: the schedule and the sizes of the chosen variant.
            x: the rows; not always contiguous.
            operands: the matrices of the sweep, or the cores.
        """

    def run(
        self,
        program: Program,
        x: Tensor,
        operands: Sequence[Tensor],
        bias: Tensor | None = None,
        onto: Tensor | None = None,
    ) -> Tensor:
        """``x (rows, in_features)`` to ``(rows, out_features)``: padding, the call, then bias or sum.

        Kernels that have a cheaper way to add the bias or the sum override it.

        Args:
            program: as in the call.
            x: the rows.
            operands: as in the call.
            bias: added to the result.
            onto: the sum of earlier terms, to which the result is added in place; only where no gradient is recorded.
        """
        spec = program.schedule.spec
        if program.is_padded:
            y = self(program, F.pad(x, (0, spec.padded_shape[1] - spec.in_features)), operands)[:, : spec.out_features]
        else:
            y = self(program, x, operands)
        if onto is not None:
            return onto.add_(y)
        # Autocast makes y shorter than the bias; a plain sum would make it long again.
        return y if bias is None else y + bias.to(y.dtype)

    def bind(
        self,
        program: Program,  # noqa: ARG002  # for kernels that override it
        operands: Sequence[Tensor],  # noqa: ARG002
        shape: torch.Size,  # noqa: ARG002
        bias: Tensor | None,  # noqa: ARG002
    ) -> Callable[[Tensor], Tensor] | None:
        """The call for inputs of one shape with kept operands, see ``mpochain.execution.bound.bind``.

        Args:
            program: as in the call; without padding.
            operands: kept and detached.
            shape: of the input, ``(..., in_features)``, at least one row.
            bias: of the layer, detached.

        Returns:
            None, the default, if nothing is saved by fixing the shape.
        """
        return None
