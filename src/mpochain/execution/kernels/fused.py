"""Fused kernel: a sweep over two or three cores by Triton, whose states never leave the chip.

The custom operator ``mpochain::fused_sweep`` reads the rows once and writes the results once. The gradient with respect
to the rows is the same sweep with the in and out axes of the cores exchanged. Gradients with respect to the matrices
recompute the states by torch's products, in tiles, as the tiled kernel does.

Not measured on a GPU yet, so predicted plans never choose it; measured plans (``set_execution(autotune=True)``) may.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mpochain.execution.autocast import autocast_dtype, without_autocast
from mpochain.execution.kernels.compiled import packed, unpacked
from mpochain.execution.kernels.device import INTERPRETED, precision, runs_triton
from mpochain.execution.kernels.kernel import Kernel
from mpochain.execution.kernels.sweep_blocks import Sizes, blocks_for
from mpochain.execution.kernels.tiled import sweep_backward
from mpochain.execution.program import Program
from mpochain.planning import Candidate, Conditions, Schedule, Variant

__all__ = ["Fused"]


def _matrix_strides(matrices: Sequence[Tensor], sizes: Sizes) -> tuple[list[tuple[int, int, int, int]], Tensor]:
    """Strides ``(kept bond, out, in, summed bond)`` of cores a, b and c, in the layout of ``Program.matrices``; and b.

    Swept from the right, matrices are ``(bond and out, in and bond)``, otherwise ``(out and bond, bond and in)``.
    """
    ab, bc = sizes.bonds
    strides: list[tuple[int, int, int, int]] = []
    cores = [matrices[0], matrices[1] if sizes.sites == 3 else matrices[-1], matrices[-1]]
    kept_bonds, summed_bonds = (ab, bc, 1), (1, ab, bc)
    for core, out, in_, kept, summed in zip(cores, sizes.outs, sizes.ins, kept_bonds, summed_bonds, strict=True):
        row, column = core.stride()
        if sizes.from_left:
            strides.append((row, kept * row, column, in_ * column))
        else:
            strides.append((out * row, row, summed * column, column))
    return strides, cores[1]


def _launch(x: Tensor, matrices: Sequence[Tensor], sizes: Sizes, *, transposed: bool = False) -> Tensor:
    """``x (rows, in)`` through the cores to ``(rows, out)``, or ``(rows, out)`` to ``(rows, in)`` if transposed."""
    import triton.language as tl

    from mpochain.execution.kernels.triton_functions import chain_sweep

    strides, middle = _matrix_strides(matrices, sizes)
    if transposed:
        sizes = sizes.transposed()
        strides = [(kept, in_, out, summed) for kept, out, in_, summed in strides]
    rows, x = x.shape[0], x.contiguous()
    y = x.new_empty(rows, math.prod(sizes.outs))
    if not rows:
        return y
    blocks = blocks_for(sizes, x.element_size())
    assert blocks is not None  # supports() has asked for both directions
    (a_bond, a_out, a_in, _), b_strides, (_, c_out, c_in, c_summed) = strides
    chain_sweep[-(-rows // blocks.rows), -(-sizes.outs[0] // blocks.outs[0])](
        *(x, matrices[0], middle, matrices[-1], y, rows),
        *(x.shape[1], *sizes.axis_strides(sizes.ins)),
        *(a_bond, a_out, a_in, *b_strides, c_out, c_in, c_summed),
        *(y.shape[1], *sizes.axis_strides(sizes.outs)),
        SIZES=(*sizes.ins, *sizes.outs, *sizes.bonds),
        MIDDLE=sizes.sites == 3,
        ACCUMULATE=tl.float64 if x.dtype == torch.float64 else tl.float32,
        PRECISION=precision(x.dtype),
        WIDENS=INTERPRETED and x.dtype == torch.bfloat16,
        ROWS=blocks.rows,
        IN_A=blocks.ins[0],
        IN_B=blocks.ins[1],
        IN_C=blocks.ins[2],
        OUT_A=blocks.outs[0],
        OUT_B=blocks.outs[1],
        OUT_C=blocks.outs[2],
        AB=blocks.bonds[0],
        BC=blocks.bonds[1],
        num_warps=8,
        num_stages=2,
    )
    return y


@torch.library.custom_op("mpochain::fused_sweep", mutates_args=())
def _sweep(x: Tensor, matrices: list[Tensor], sizes: list[int], steps: list[int], tile: int) -> Tensor:
    return _launch(x, matrices, Sizes.from_list(sizes))


@_sweep.register_fake
def _(x: Tensor, matrices: list[Tensor], sizes: list[int], steps: list[int], tile: int) -> Tensor:
    return x.new_empty(x.shape[0], math.prod(Sizes.from_list(sizes).outs))


@torch.library.custom_op("mpochain::fused_sweep_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, matrices: list[Tensor], sizes: list[int], steps: list[int], tile: int
) -> list[Tensor]:
    with without_autocast(x):
        grad_x = _launch(grad, matrices, Sizes.from_list(sizes), transposed=True)
        _, grads = sweep_backward(grad, x.contiguous(), matrices, unpacked(steps), tile, needs_x=False)
    return [grad_x, *grads]


@_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    matrices: list[Tensor],
    sizes: list[int],
    steps: list[int],
    tile: int,
) -> list[Tensor]:
    return [x.new_empty(x.shape), *(torch.empty_like(matrix) for matrix in matrices)]


def _setup(ctx: Any, inputs: tuple[Tensor, list[Tensor], list[int], list[int], int], output: Tensor) -> None:
    x, matrices, ctx.sizes, ctx.steps, ctx.tile = inputs
    ctx.save_for_backward(x, *matrices)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, list[Tensor], None, None, None]:
    x, *matrices = ctx.saved_tensors
    grad_x, *grads = torch.ops.mpochain.fused_sweep_backward(grad, x, matrices, ctx.sizes, ctx.steps, ctx.tile)
    return grad_x, grads, None, None, None


_sweep.register_autograd(_differentiate, setup_context=_setup)


class Fused(Kernel):
    """The sweep as one Triton kernel, for two or three cores."""

    name = "fused"
    graphs = ("eager", "compiled")

    def supports(self, schedule: Schedule, conditions: Conditions) -> bool:
        """True where Triton runs, for sweeps from end to end over two or three cores that fit on the chip."""
        if not runs_triton(conditions.setting.device):
            return False
        sizes, element = Sizes.of(schedule), conditions.machine.element_bytes
        directions = () if sizes is None else (sizes, sizes.transposed())
        return bool(directions) and all(blocks_for(direction, element) is not None for direction in directions)

    def advised(self, schedule: Schedule, conditions: Conditions) -> bool:  # noqa: ARG002  # of the base class
        """False, since its time is not measured on any GPU yet."""
        return False

    def variants(self, candidate: Candidate, conditions: Conditions) -> Iterator[Variant]:
        """One variant; its tile is that of the gradients with respect to the matrices."""
        widest = max(step.before * step.after * (step.summed + step.kept) for step in candidate.schedule.sweeps)
        rows = conditions.machine.largest_tile_bytes // (widest * conditions.machine.element_bytes)
        yield Variant(candidate, conditions.batch, self.name, min(max(rows, 1), conditions.batch))

    def seconds(self, variant: Variant, conditions: Conditions) -> float:
        """The larger of the times of multiply-adds and of memory, by the constants of the device, and one call."""
        machine, schedule, batch = conditions.machine, variant.schedule, conditions.batch
        macs = batch * schedule.sweep_macs + (0 if conditions.merged_is_cached else schedule.merge_macs)
        elements = schedule.spec.parameters + batch * sum(schedule.spec.padded_shape)
        forward = max(2 * macs / machine.gemm_rate, elements * machine.element_bytes / machine.bandwidth)
        return machine.call_seconds + forward * (3 if conditions.training else 1)

    def __call__(self, program: Program, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
        """Call the operator, in the dtype that autocast gives products."""
        dtype = autocast_dtype(x)
        if dtype is not None:
            # Autocast does not cast the arguments of custom operators.
            x, operands = x.to(dtype), [matrix.to(dtype) for matrix in operands]
        sizes = Sizes.of(program.schedule)
        assert sizes is not None  # see supports()
        return torch.ops.mpochain.fused_sweep(x, list(operands), sizes.as_list(), packed(program.steps), program.tile)
