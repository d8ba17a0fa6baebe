"""Calls of the variants of a contraction plan on random inputs and cores, to be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mpochain.execution.bound import bind
from mpochain.execution.foreign import checked
from mpochain.execution.kernels import Kernel
from mpochain.execution.measurement import dtype_of, interleaved
from mpochain.execution.program import Program
from mpochain.planning import ContractionPlan, Variant

__all__ = ["PlanBench"]

# Seconds after which no further round of timing starts.
_SECONDS = 0.5


class PlanBench:
    """Times variants of one plan on random inputs and cores.

    Args:
        predicted: the plan; its batch, mode, memory and setting say what is timed.
        kernels: kernels by name.

    Example:
        >>> from mpochain.execution import KERNELS
        >>> from mpochain.planning import plan
        >>> from mpochain.spec import ChainSpec
        >>> predicted = plan(ChainSpec((8, 8), (8, 8), max_bond=4), batch=16)
        >>> bench = PlanBench(predicted, {kernel.name: kernel for kernel in KERNELS.values()})
        >>> bench.call(predicted.chosen)().shape
        torch.Size([16, 64])
    """

    def __init__(self, predicted: ContractionPlan, kernels: Mapping[str, Kernel]) -> None:
        self.predicted, self.kernels, self.device = predicted, kernels, predicted.setting.device
        self.training = predicted.mode == "training"
        self.dtype = dtype_of(predicted.setting)
        self._generator = torch.Generator(self.device).manual_seed(0)
        spec = predicted.spec
        self.x = self._filled(predicted.batch, spec.in_features)
        self.cores = [self._filled(*shape) for shape in spec.core_shapes]
        self.matrix = self._filled(spec.out_features, spec.in_features)
        self.grad = self._filled(predicted.batch, spec.out_features).detach() if self.training else None

    def _filled(self, *shape: int) -> Tensor:
        numbers = torch.randn(*shape, generator=self._generator, device=self.device, dtype=torch.float32)
        return numbers.to(self.dtype).requires_grad_(self.training)

    def seconds(self, variants: list[Variant]) -> tuple[dict[Variant, float], float]:
        """Median seconds of each variant, and of the dense layer."""
        dense = self._step(lambda: F.linear(self.x, self.matrix), [self.x, self.matrix])
        calls = [dense, *(self.call(variant) for variant in variants)]
        first, *rest = interleaved(calls, self.device, budget=_SECONDS)
        return dict(zip(variants, rest, strict=True)), first

    def call(self, variant: Variant) -> Callable[[], Any]:
        """One call of a variant, with its backward pass in training, as a layer makes it."""
        kernel = checked(self.kernels[variant.kernel], self.predicted.spec)
        program = Program.of(variant, kernel, self.predicted.machine)
        keeps = program.only_views or (self.predicted.memory == "fast" and not kernel.takes_cores)
        if not self.training and keeps:
            matrices = [matrix.contiguous() for matrix in program.matrices(self.cores)]
            bound = bind(program, matrices, self.x.shape, None, [], None)
            # With few rows the overhead of calls matters, so the bound call is timed, as the layer uses it.
            if bound is not None:
                return lambda: bound(self.x, {})
            return lambda: program.run(self.x, matrices, None)
        return self._step(lambda: program(self.x, self.cores, None), [self.x, *self.cores])

    def _step(self, forward: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], object]:
        if self.grad is None:
            return forward
        return lambda: torch.autograd.grad(forward(), leaves, self.grad)
