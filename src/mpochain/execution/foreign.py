"""Kernels of other packages: what they raise and return, checked where they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mpochain.errors import ExtensionError
from mpochain.execution.kernels import KERNELS, Kernel
from mpochain.execution.program import Program
from mpochain.planning import Candidate, Conditions, Schedule, Variant
from mpochain.spec import ChainSpec
from mpochain.system.extensions import errors_named

__all__ = ["checked", "kernel_named"]


def checked(kernel: Kernel, spec: ChainSpec) -> Kernel:
    """A kernel whose errors name it and the chain it ran; the library's own kernels are returned as they are.

    Args:
        kernel: kernel of the table.
        spec: the chain that it runs.
    """
    own = type(kernel).__module__.partition(".")[0] == __name__.partition(".")[0]
    return kernel if own else _Checked(kernel, spec)


def kernel_named(name: str, spec: ChainSpec) -> Kernel:
    """The kernel of a name, under whatever key it is in the table, as :func:`checked` returns it."""
    return checked(next(kernel for kernel in KERNELS.values() if kernel.name == name), spec)


class _Checked(Kernel):
    """A kernel of another package, run for one chain."""

    def __init__(self, kernel: Kernel, spec: ChainSpec) -> None:
        self._kernel, self._spec = kernel, spec
        self._label = f"kernel {kernel.name!r}, layer of the chain {spec}"
        self.name, self.graphs, self.takes_cores = kernel.name, kernel.graphs, kernel.takes_cores  # type: ignore[misc]

    def supports(self, schedule: Schedule, conditions: Conditions) -> bool:
        return self._kernel.supports(schedule, conditions)

    def variants(self, candidate: Candidate, conditions: Conditions) -> Iterator[Variant]:
        return self._kernel.variants(candidate, conditions)

    def seconds(self, variant: Variant, conditions: Conditions) -> float:
        return self._kernel.seconds(variant, conditions)

    def __call__(self, program: Program, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
        with errors_named(self._label):
            return self._kernel(program, x, operands)

    def run(
        self,
        program: Program,
        x: Tensor,
        operands: Sequence[Tensor],
        bias: Tensor | None = None,
        onto: Tensor | None = None,
    ) -> Tensor:
        with errors_named(self._label):
            y: object = self._kernel.run(program, x, operands, bias, onto)
        shape = (x.shape[0], self._spec.out_features)
        if not isinstance(y, Tensor) or y.shape != shape:
            kind = f"a tensor of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ExtensionError(f"{self._label}: it returned {kind}; expected a tensor of shape {shape}")
        return y

    def bind(
        self, program: Program, operands: Sequence[Tensor], shape: torch.Size, bias: Tensor | None
    ) -> Callable[[Tensor], Tensor] | None:
        with errors_named(self._label):
            run = self._kernel.bind(program, operands, shape, bias)
        if run is None:
            return None

        def bound(x: Tensor) -> Tensor:
            with errors_named(self._label):
                return run(x)

        return bound
