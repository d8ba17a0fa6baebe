"""Bound calls: a program for one exact input shape, with all decisions made in advance.

With few rows the calls dominate the time: a product of small matrices takes 6 µs, a view 1.5 µs, and every condition
between them tenths of a µs. So everything that can be is computed once: the shapes of the states, transposed and
expanded views of the matrices, and the kind of product of each step. A changed core is detected by its identity,
address and version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mpochain.execution.program import Program
from mpochain.execution.tracing import is_recorded

__all__ = ["Bound", "bind", "bind_unkept"]

# ``bound(x, parameters)`` returns the layer's output, or None if a core has changed since binding.
Bound = Callable[[Tensor, Mapping[str, Tensor | None]], Tensor | None]


def bind(
    program: Program,
    matrices: Sequence[Tensor],
    shape: torch.Size,
    bias: Tensor | None,
    watched: Sequence[tuple[str, Tensor, int | None]],
    still_valid: Callable[[], bool] | None,
) -> Bound | None:
    """A function for inputs of one shape, or None if the kernel does not bind this shape.

    Args:
        program: the program to run.
        matrices: matrices of the program's sweep, cached between calls.
        shape: shape of the input, ``(..., in_features)``.
        bias: bias of the layer, named ``"bias"`` in its parameters.
        watched: name, tensor and version of the cores that the matrices were computed from; the version is None if the
            matrices are views, which reflect in-place changes.
        still_valid: further condition for the matrices to be valid.
    """
    if program.is_padded or not math.prod(shape[:-1]):
        return None
    # Detached, since kernels create views of it.
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


def bind_unkept(program: Program, shape: torch.Size, names: Sequence[str]) -> Bound | None:
    """A function for inputs of one shape whose matrices are computed from the cores at every call.

    Nothing has to be watched, since nothing is kept; None for an input without rows.

    Args:
        program: the program to run.
        shape: shape of the input, ``(..., in_features)``.
        names: names of the cores.
    """
    out_features, in_features = program.schedule.spec.shape
    if not math.prod(shape[:-1]):
        return None
    is_flat, threads = len(shape) == 2, torch.get_num_threads()

    def bound(x: Tensor, parameters: Mapping[str, Tensor | None]) -> Tensor | None:
        cores = [core for name in names if (core := parameters.get(name)) is not None]
        # A parametrised core or bias is no parameter of the layer itself.
        if len(cores) < len(names) or "bias" not in parameters or torch.get_num_threads() != threads or is_recorded():
            return None
        y = program(x if is_flat else x.reshape(-1, in_features), cores, parameters["bias"])
        return y if is_flat else y.reshape(*shape[:-1], out_features)

    return bound
