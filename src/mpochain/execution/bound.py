"""A sweep at one exact input shape, with nothing left to decide.

On few rows the calls are the cost: a product of small matrices takes 6 µs here, a view 1.5, and every question asked
between them some tenths. So what can be decided once is: the shapes of all states, transposed and expanded views of the
matrices, and which product each step is. A changed core is noticed by what is watched of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mpochain.execution.kernels.tiled import folds
from mpochain.execution.program import Program

__all__ = ["Bound", "bind"]

# ``bound(x, parameters)`` is the layer's output, or None where a core is no longer what it was bound to.
Bound = Callable[[Tensor, Mapping[str, Tensor | None]], Tensor | None]

# Rows up to which adding the bias to the product is faster than the fused call, whose set-up costs 1 µs more.
_FEW_ROWS = 16


def bind(
    program: Program,
    matrices: Sequence[Tensor],
    shape: torch.Size,
    bias: Tensor | None,
    watched: Sequence[tuple[str, Tensor, int | None]],
    still_valid: Callable[[], bool] | None,
) -> Bound | None:
    """The call for inputs of one shape, or None where there is more to do than products.

    Args:
        program: what is run.
        matrices: those of the program, kept between calls.
        shape: of the input, ``(..., in_features)``.
        bias: of the layer, found under ``"bias"``.
        watched: name, core and version of each core the matrices were made from; no version where the matrices are
            views, which show changes in place.
        still_valid: a further condition of the matrices.
    """
    spec, rows = program.schedule.spec, math.prod(shape[:-1])
    if spec.padded_shape != spec.shape or not rows or (len(matrices) > 1 and rows > program.tile):
        return None
    # Detached, as views for the last product are made of it.
    free = None if bias is None else bias.detach()
    run = _linear(matrices[0], shape, free) if len(matrices) == 1 else _sweep(program, matrices, shape, rows, free)
    if run is None:
        return None
    watch = [(name, core, core.data_ptr(), version) for name, core, version in watched]
    if bias is not None:
        watch.append(("bias", bias, bias.data_ptr(), None))
    threads = torch.get_num_threads()

    def bound(x: Tensor, parameters: Mapping[str, Tensor | None]) -> Tensor | None:
        if bias is None and parameters.get("bias") is not None:
            return None
        for name, tensor, pointer, version in watch:
            if parameters.get(name) is not tensor or tensor.data_ptr() != pointer:
                return None
            if version is not None and tensor._version != version:
                return None
        if torch.get_num_threads() != threads or (still_valid is not None and not still_valid()):
            return None
        return run(x)

    return bound


def _linear(matrix: Tensor, shape: torch.Size, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    if len(shape) == 2 and shape[0] <= _FEW_ROWS:
        transposed = matrix.t()
        if bias is None:
            return lambda x: torch.mm(x, transposed)
        return lambda x: torch.mm(x, transposed).add_(bias)
    return lambda x: F.linear(x, matrix, bias)


def _sweep(
    program: Program, matrices: Sequence[Tensor], shape: torch.Size, rows: int, bias: Tensor | None
) -> Callable[[Tensor], Tensor] | None:
    # Product, matrix, whether the matrix stands on the right, and the shape that the state is given before.
    steps: list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor, bool, tuple[int, ...]]] = []
    for matrix, (k, c, a, p) in zip(matrices, program.steps, strict=True):
        if a == 1:
            steps.append((torch.mm, matrix.t(), True, (rows * p, c)))
        elif rows * p == 1:
            steps.append((torch.mm, matrix, False, (c, a)))
        elif folds(k, c, a, rows * p):
            return None
        else:
            steps.append((torch.bmm, matrix.expand(rows * p, k, c), False, (rows * p, c, a)))
    *first, (product, last, is_right, size) = steps
    result = (*shape[:-1], program.schedule.spec.out_features)
    with_sum, addend = None, bias
    if bias is not None and rows == 1 and product is torch.mm:
        # One row: the bias in the shape of the last product is a view, and the sum part of the product.
        k, c, a, p = program.steps[-1]
        with_sum, addend = torch.addmm, bias.view(p, k) if a == 1 else bias.view(k, a)

    def run(x: Tensor) -> Tensor:
        state = x
        for multiply, matrix, right, came in first:
            # reshape, as the input may lie in any order; sizes one by one, as torch reads a tuple 1.3 µs longer.
            state = state.reshape(*came)
            state = multiply(state, matrix) if right else multiply(matrix, state)
        state = state.view(*size)
        if with_sum is not None and addend is not None:
            state = with_sum(addend, state, last) if is_right else with_sum(addend, last, state)
            return state.view(*result)
        state = (product(state, last) if is_right else product(last, state)).view(*result)
        return state if addend is None else state.add_(addend)

    return run
