"""Bound calls: a program at one exact input shape, with every decision taken beforehand.

On few rows the calls are the cost: a product of small matrices takes 6 µs, a view 1.5, and every condition between them
tenths of one. So all that can be computed once is: the shapes of the states, transposed and expanded views of the
matrices, and which product a step is. A changed core is noticed by its identity, address and version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mpochain.execution.program import Program

__all__ = ["Bound", "bind"]

# ``bound(x, parameters)`` is the layer's output, or None if a core is not the one it was bound to.
Bound = Callable[[Tensor, Mapping[str, Tensor | None]], Tensor | None]


def bind(
    program: Program,
    matrices: Sequence[Tensor],
    shape: torch.Size,
    bias: Tensor | None,
    watched: Sequence[tuple[str, Tensor, int | None]],
    still_valid: Callable[[], bool] | None,
) -> Bound | None:
    """The call for inputs of one shape, or None if the kernel does not bind it.

    Args:
        program: is run.
        matrices: those of the program, kept between calls.
        shape: of the input, ``(..., in_features)``.
        bias: of the layer, under the name ``"bias"`` in its parameters.
        watched: name, core and version of the cores that the matrices are made of; no version if the matrices are
            views, which show changes in place.
        still_valid: a further condition of the matrices.
    """
    if program.is_padded or not math.prod(shape[:-1]):
        return None
    # Detached, as kernels make views of it.
    run = program.kernel.bind(program, matrices, shape, None if bias is None else bias.detach())
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
