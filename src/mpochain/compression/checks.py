"""Checks of a compression that need no data, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from mpochain.compression.blocks.refinement import require_refinable
from mpochain.compression.blocks.refinement_settings import Refinement, settings_of
from mpochain.compression.budget import error_budget
from mpochain.compression.limit import Limit
from mpochain.compression.methods import Method, method_of
from mpochain.compression.selection import Opened, open_targets
from mpochain.compression.stages import stage_limits
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError
from mpochain.surgery.experts import separated_experts
from mpochain.system.extensions import errors_named

__all__ = ["checked", "require_possible", "untouched_modules"]

# A module that is no target is listed in the report if it holds at least this share of the model's parameters.
_LARGE = 0.01


def require_possible(
    model: nn.Module,
    budget: float | str | None,
    *,
    targets: Iterable[str] | None = None,
    ignore: Iterable[str] = (),
    method: str | Method | None = None,
    sequential: bool = False,
    refine: bool | Refinement = False,
    speed: float | str | None = None,
    stages: Sequence[float | str] = (),
) -> None:
    """Refuse what :func:`mpochain.compress` would refuse before it reads any data; the arguments are the same.

    Raises:
        ArgumentError: see :func:`mpochain.compress`.
        NonFiniteError: see :func:`mpochain.compress`.
    """
    with separated_experts(model):
        way = method_of(method, budget)
        checked(model, budget, way, targets, ignore, sequential=sequential, refine=refine, speed=speed, stages=stages)


def checked(
    model: nn.Module,
    budget: float | str | None,
    method: Method,
    targets: Iterable[str] | None,
    ignore: Iterable[str],
    *,
    sequential: bool,
    refine: bool | Refinement,
    speed: float | str | None = None,
    stages: Sequence[float | str] = (),
) -> tuple[Opened, list[Limit]]:
    """The layers to compress and their limits, that of the last stage last, after all checks that need no data."""
    selected = open_targets(model, method, targets, ignore)
    _require_consistent(method, budget, sequential, speed)
    limit = Limit.of(budget, model, method, selected.targets, speed)
    earlier = stage_limits(
        stages, budget, method, lambda stage: Limit.of(stage, model, method, selected.targets, speed)
    )
    with errors_named(f"method {method.name!r}, check of the layers"):
        method.check(selected.targets, limit.of_layers)
    limit.check()
    if settings_of(refine) is not None:
        require_refinable(model, selected.targets)
    return selected, [*earlier, limit]


def _require_consistent(
    method: Method, budget: float | str | None, sequential: bool, speed: float | str | None
) -> None:
    """Refuse arguments that contradict the method."""
    if sequential and method.needs == "nothing":
        raise ArgumentError(f"sequential=True needs calibration data, which method {method.name!r} does not use")
    if method.settled and budget is not None:
        raise ArgumentError(
            f"the settings of method {method.name!r} leave no choice, so it takes no budget, got budget {budget!r}; "
            "give budget=None, or leave out the setting that decides, such as terms or ranks"
        )
    if not method.settled and budget is None and speed is None:
        raise ArgumentError(f"method {method.name!r} needs a budget, got none; give a share such as 0.6")
    if speed is None:
        return
    if method.settled or method.uniform or method.same_choice:
        what = "leave no choice" if method.settled else "give every layer the same"
        raise ArgumentError(
            f"the settings of method {method.name!r} {what}, so it takes no second budget, got speed={speed!r}; leave "
            "it out, or choose a method that shares a budget among layers, such as auto or interpolative"
        )
    if budget is not None and error_budget(budget) is not None:
        raise ArgumentError(
            f"budget {budget!r} bounds the error of each layer by itself, so it takes no second budget, got "
            f"speed={speed!r}; give a share, a size or bits per weight instead"
        )


def untouched_modules(model: nn.Module, targets: Mapping[str, Target], parameters: int) -> tuple[tuple[str, int], ...]:
    """Names and sizes of large modules that are not targets, largest first; tied parameters count once."""
    counted = {id(parameter) for target in targets.values() for parameter in target.module.parameters(recurse=False)}
    large = []
    for name, module in model.named_modules():
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in counted]
        counted.update(map(id, own))
        size = sum(parameter.numel() for parameter in own)
        if size >= _LARGE * parameters:
            large.append((name, size))
    return tuple(sorted(large, key=lambda item: -item[1]))
