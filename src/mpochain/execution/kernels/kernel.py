"""Kernel interface: execution of a schedule in torch, on top of the kernel model that the planner uses."""

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
    """Base class of kernels, which run schedules in torch.

    A subclass defines at least ``name``, ``supports``, ``variants`` and ``seconds`` for the planner, and ``__call__``.
    A plan chooses the kernel, and the plan's program refers to it, so calls of a layer make no choices.

    ``__call__`` must be differentiable with respect to ``x`` and the operands wherever ``supports`` accepts
    ``mode="training"``, return the dtype that autocast gives products, and accept any number of rows, including 0,
    since a plan serves all batches of its bucket.

    Attributes:
        takes_cores: True if the operands are the cores of the chain. Otherwise they are the matrices of the sweep
            (``program.matrices``), which may be cached between calls.

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
        """``x (rows, in_features)`` to ``(rows, out_features)``: pad, call, then add the bias or the sum.

        Kernels with a cheaper way to add the bias or the sum override this method.

        Args:
            program: see ``__call__``.
            x: the rows.
            operands: see ``__call__``.
            bias: added to the result.
            onto: the sum of earlier terms, to which the result is added in place; only if no gradient is recorded.
        """
        spec = program.schedule.spec
        if program.is_padded:
            y = self(program, F.pad(x, (0, spec.padded_shape[1] - spec.in_features)), operands)[:, : spec.out_features]
        else:
            y = self(program, x, operands)
        if onto is not None:
            return onto.add_(y)
        # Under autocast a bias of a wider dtype would promote the result.
        return y if bias is None else y + bias.to(y.dtype)

    def bind(
        self,
        program: Program,  # noqa: ARG002  # used by overrides
        operands: Sequence[Tensor],  # noqa: ARG002
        shape: torch.Size,  # noqa: ARG002
        bias: Tensor | None,  # noqa: ARG002
    ) -> Callable[[Tensor], Tensor] | None:
        """A function for inputs of one shape with cached operands, see ``mpochain.execution.bound.bind``.

        Args:
            program: see ``__call__``; without padding.
            operands: cached and detached.
            shape: shape of the input, ``(..., in_features)``, with at least one row.
            bias: bias of the layer, detached.

        Returns:
            The function, or None if a fixed shape saves nothing, which is the default.
        """
        return None
