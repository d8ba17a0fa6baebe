"""What is made of parameters and kept between calls without gradients, and how a change of theirs is found out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from mpochain.execution.autocast import without_autocast

__all__ = ["STEPS", "Kept", "ParameterState", "keepable", "same", "same_memory", "state_of"]

# A parameter with its address, type and version.
ParameterState = tuple[Tensor, int, torch.dtype, int]


def same(one: Sequence[ParameterState], other: Sequence[ParameterState]) -> bool:
    """Whether nothing has changed."""
    return all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(one, other, strict=True))


def same_memory(one: Sequence[ParameterState], other: Sequence[ParameterState]) -> bool:
    """Whether the parameters are the same and lie where they lay, whatever they hold."""
    return all(a[0] is b[0] and a[1] == b[1] for a, b in zip(one, other, strict=True))


def state_of(parameters: Sequence[Tensor], *, versions: bool = True) -> list[ParameterState]:
    """The parameters themselves, so that none is freed and its identity given to another while it is compared with.

    Args:
        parameters: what something is made of.
        versions: whether changes in place count.
    """
    return [(each, each.data_ptr(), each.dtype, each._version if versions else 0) for each in parameters]


def keepable(x: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether anything may be kept of these: parameters of a module, met by a plain tensor.

    Others come and go: those of ``functional_call``, of parametrisations, dual numbers, fake and traced tensors.
    """
    return type(x) is Tensor and all(type(each) is nn.Parameter for each in parameters)


class _OptimizerSteps:
    """Counts the steps of every optimiser: fused ones change parameters without counting a new version of them."""

    def __init__(self) -> None:
        self.count = 0
        self._watching = False

    def watch(self) -> None:
        """Begin to count; done once, when the first layer is set to fast execution."""
        if not self._watching:
            self._watching = True
            register_optimizer_step_post_hook(self._counted)

    def _counted(self, *_: object) -> None:
        self.count += 1


STEPS = _OptimizerSteps()


class Kept:
    """One tensor made of parameters, made again when one of them changes.

    Copies and pickles carry nothing of it.
    """

    def __init__(self) -> None:
        STEPS.watch()
        self._found: tuple[int, list[ParameterState], Tensor] | None = None

    def get(self, x: Tensor, parameters: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor | None:
        """What ``make`` gave for these parameters; None where nothing may be kept of them.

        Args:
            x: what it will meet.
            parameters: all that ``make`` uses.
            make: called without gradients if anything has changed.
        """
        found = self._found
        if found is not None and found[0] == STEPS.count and type(x) is Tensor:
            # Written out, as this is at every call of a layer whose product may take a few microseconds.
            for now, (before, address, _, version) in zip(parameters, found[1], strict=True):
                if now is not before or now._version != version or now.data_ptr() != address:
                    break
            else:
                return found[2]
        # Inference tensors count no versions, so a change could not be seen.
        if not keepable(x, parameters) or any(each.is_inference() for each in parameters):
            return None
        # Nor is what autocast would narrow what the next call wants.
        with torch.no_grad(), without_autocast(parameters[0]):
            made = make()
        self._found = STEPS.count, state_of(parameters), made
        return made

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()
