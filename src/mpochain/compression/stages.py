"""Stages of a compression: its statistics are collected in the model that was compressed to a larger budget before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import nn

from mpochain.compression.budget import error_budget
from mpochain.compression.building import Builder, build_all
from mpochain.compression.layer_choices import Setup
from mpochain.compression.limit import Limit
from mpochain.compression.methods import Method
from mpochain.compression.state import CompressionState
from mpochain.compression.together import in_turn
from mpochain.errors import ArgumentError

__all__ = ["compressed_in_stages", "stage_limits"]

_logger = logging.getLogger(__name__)


def stage_limits(
    stages: object, budget: float | str | None, method: Method, limit_of: Callable[[float | str], Limit]
) -> list[Limit]:
    """The limits of the earlier stages, after all checks.

    Args:
        stages: budgets of the earlier stages, as the user gave them.
        budget: the budget asked for.
        method: compression method.
        limit_of: function from a budget to its limit.

    Raises:
        ArgumentError: the stages are no list of budgets, the method uses no data or takes no budget, or a budget is
            invalid, does not lie between the whole model and the next budget, or is of another kind.
    """
    if not isinstance(stages, list | tuple):
        raise ArgumentError(
            f"stages= is a list of budgets, each larger than the next, such as [0.9, 0.8]; got {stages!r}"
        )
    if not stages:
        return []
    if method.needs == "nothing":
        raise ArgumentError(
            f"stages= collects statistics again in the compressed model, and method {method.name!r} uses none; leave "
            "it out, or choose another method"
        )
    if budget is None:
        raise ArgumentError("stages= needs a budget that follows them; give one, or leave it out")
    by_error = error_budget(budget) is not None
    before: Limit | None = None
    limits = []
    for stage in (*stages, budget):
        try:
            if isinstance(stage, bool) or not isinstance(stage, int | float | str):
                raise ArgumentError(f"expected a share, a size, bits per weight or an error, got {stage!r}")
            limit = limit_of(stage)
            error = error_budget(stage)
        except ArgumentError as error_of_it:
            raise ArgumentError(f"stages: {error_of_it}") from error_of_it
        if (error is not None) is not by_error:
            raise ArgumentError(
                f"stages: {stage!r} and budget {budget!r} cannot be compared, since one of them limits the "
                "error of each layer; give budgets of one kind"
            )
        if before is not None and _size(limit) >= _size(before):
            raise ArgumentError(
                f"stages: {stage!r} is not below {before.budget!r} before it; each stage must ask for a "
                f"smaller model than the one before, and the budget {budget!r} for the smallest"
            )
        if before is None and not by_error and limit.allowed >= sum(target.bytes for target in limit.targets.values()):
            raise ArgumentError(f"stages: {stage!r} allows all layers as they are; give less, or leave it out")
        before = limit
        limits.append(limit)
    return limits[:-1]


def compressed_in_stages(
    setup: Setup, limits: Sequence[Limit], state: CompressionState | None
) -> Mapping[nn.Module, nn.Module]:
    """Compress the dense layers to each limit, with statistics from the model of the stage before.

    The model is dense afterwards.

    Args:
        setup: what all stages share.
        limits: limits of the earlier stages.
        state: keeps the stages, or has them; None to keep none.

    Returns:
        The compressed layer of each dense one in the last of these stages.
    """
    standing: Mapping[nn.Module, nn.Module] = {}
    targets = setup.selected.targets
    for number, limit in enumerate(limits, 1):
        _logger.info("stage %d of %d: %s", number, len(limits) + 1, limit.budget)
        of_stage = in_turn(setup.division.team, partial(_stage, state, number))
        with setup.store(of_stage) as moments:
            preparation, choice = setup.choose(limit, moments, of_stage, standing)
            builder = Builder(setup.method, targets, choice["chosen"], moments, preparation, of_stage, setup.division)
            build_all(targets, builder)
            builder.verify(limit)
        builder.tie(setup.selected.heads)
        standing = builder.built
    return standing


def _stage(state: CompressionState | None, number: int) -> CompressionState | None:
    return None if state is None else state.stage(number)


def _size(limit: Limit) -> float:
    """What a limit allows: bytes, or less for a larger error."""
    error = None if limit.budget is None else error_budget(limit.budget)
    return limit.allowed if error is None else -error
