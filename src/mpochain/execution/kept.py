"""Cache of tensors computed from parameters, for calls without gradients, and detection of changed parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.optim.optimizer import register_optimizer_step_post_hook

from mpochain.execution.autocast import without_autocast

__all__ = ["STEPS", "Kept", "ParameterState", "buffers_of", "keepable", "same", "same_memory", "state_of"]

Result = TypeVar("Result")
# A parameter with its address, dtype and version.
ParameterState = tuple[Tensor, int, torch.dtype, int]


def same(one: Sequence[ParameterState], other: Sequence[ParameterState]) -> bool:
    """True if no parameter has changed."""
    return all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(one, other, strict=True))


def same_memory(one: Sequence[ParameterState], other: Sequence[ParameterState]) -> bool:
    """True if the parameters are the same objects at the same addresses; their values may differ."""
    return all(a[0] is b[0] and a[1] == b[1] for a, b in zip(one, other, strict=True))


def state_of(parameters: Sequence[Tensor], *, versions: bool = True) -> list[ParameterState]:
    """The state of parameters, to detect later changes; it keeps them alive, so that their identities stay unique.

    Args:
        parameters: parameters that a cached tensor is computed from.
        versions: whether in-place changes count.
    """
    return [
        (parameter, parameter.data_ptr(), parameter.dtype, parameter._version if versions else 0)
        for parameter in parameters
    ]


def keepable(x: Tensor, parameters: Sequence[Tensor]) -> bool:
    """True if a tensor computed from these may be cached: for module parameters, and an ``x`` that is a plain tensor.

    Other tensors exist for one call only: those of ``functional_call`` and parametrisations, dual numbers, fake and
    traced tensors.
    """
    return type(x) is Tensor and all(type(parameter) is nn.Parameter for parameter in parameters)


def _plain(buffers: Sequence[Tensor]) -> bool:
    """True if none of the buffers carries a derivative or stands for several tensors, as in ``torch.func``."""
    if not buffers:
        return True
    return not torch._C._are_functorch_transforms_active() and all(
        type(buffer) is Tensor and not buffer.requires_grad and unpack_dual(buffer).tangent is None
        for buffer in buffers
    )


def buffers_of(module: nn.Module) -> list[Tensor]:
    """The buffers of a module and its submodules; ``module.buffers()`` takes longer than to look up a few rows."""
    buffers = [buffer for buffer in module._buffers.values() if buffer is not None]
    for child in module._modules.values():
        if child is not None:
            buffers += buffers_of(child)
    return buffers


class _OptimizerSteps:
    """Counter of the steps of all optimisers: fused ones change parameters without increasing their version."""

    def __init__(self) -> None:
        self.count = 0
        self._watching = False

    def watch(self) -> None:
        """Start counting; done once, when the first layer caches tensors."""
        if not self._watching:
            self._watching = True
            register_optimizer_step_post_hook(self._counted)

    def _counted(self, *_: object) -> None:
        self.count += 1


STEPS = _OptimizerSteps()


class Kept:
    """Cache of one result computed from parameters, recomputed when a parameter changes.

    Copies and pickles of the cache are empty.
    """

    def __init__(self) -> None:
        STEPS.watch()
        self._entry: tuple[int, list[ParameterState], Any] | None = None

    def get(
        self,
        x: Tensor,
        parameters: Sequence[Tensor] | None,
        make: Callable[[], Result],
        buffers: Sequence[Tensor] = (),
    ) -> Result | None:
        """The result of ``make`` for these parameters; None if it may not be cached.

        Args:
            x: input of the call that uses the result.
            parameters: all parameters that ``make`` uses; None if they are not known, so that nothing is cached.
            make: computes the tensor, or a layer of tensors; called without gradients if a parameter or buffer has
                changed.
            buffers: all buffers that ``make`` uses.
        """
        if parameters is None:
            return None
        tensors = [*parameters, *buffers] if buffers else parameters
        entry = self._entry
        if entry is not None and entry[0] == STEPS.count and type(x) is Tensor and len(tensors) == len(entry[1]):
            # Not a call of same(): this is on the path of every call of a layer, whose product may take microseconds.
            for now, (before, address, dtype, version) in zip(tensors, entry[1], strict=True):
                # A tensor without elements has no address that a conversion would change.
                if now is not before or now._version != version or now.data_ptr() != address or now.dtype != dtype:
                    break
            else:
                kept: Result = entry[2]
                return kept
        # Inference tensors have no version counter, so a change would not be noticed.
        if not keepable(x, parameters) or any(now.is_inference() for now in tensors) or not _plain(buffers):
            return None
        # In the parameters' own dtype, since the next call may be without autocast.
        with torch.no_grad(), without_autocast(x):
            result = make()
        self._entry = STEPS.count, state_of(tensors), result
        return result

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()
