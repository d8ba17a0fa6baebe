"""Records of measured plans in the user's cache folder: their keys, and plans made of them again."""

from __future__ import annotations

import math
from typing import Any

from mpochain.execution.kernels import Kernel
from mpochain.planning import Conditions, Considered, ContractionPlan, Variant
from mpochain.planning.kernel_models import runs
from mpochain.planning.store import STORE

__all__ = ["conditions_of", "measured_before", "remember"]


def conditions_of(predicted: ContractionPlan) -> Conditions:
    """The conditions that a plan was made for."""
    return Conditions(predicted.batch, predicted.mode, predicted.memory, predicted.setting, predicted.machine)


def measured_before(predicted: ContractionPlan, kernels: tuple[Kernel, ...], *, by: str = "") -> ContractionPlan | None:
    """The plan from an earlier measurement; None without a valid record, so that the plan is measured again.

    Args:
        predicted: the plan to replace.
        kernels: the kernels that were chosen among.
        by: the kind of measurement; empty for that of autotuning.
    """
    return _recalled(predicted, STORE.decision(_key(predicted, kernels, by)), kernels)


def remember(timed: ContractionPlan, kernels: tuple[Kernel, ...], *, by: str = "", warns: bool = True) -> None:
    """Store the times of a measured plan; see :func:`measured_before`.

    Args:
        timed: the measured plan.
        kernels: the kernels that were chosen among.
        by: the kind of measurement.
        warns: whether to warn if the user's cache folder is not writable.
    """
    record: dict[str, Any] = {
        "timed": [
            {**entry.variant.as_dict(), "seconds": entry.measured}
            for entry in timed.considered
            if entry.measured is not None
        ]
    }
    if timed.dense_measured is not None:
        record["dense"] = timed.dense_measured
    STORE.add_decision(_key(timed, kernels, by), record, warns=warns)


def _key(plan: ContractionPlan, kernels: tuple[Kernel, ...], by: str) -> str:
    names = ",".join(kernel.name for kernel in kernels)
    key = [str(plan.spec.as_dict()), str(plan.batch), str(plan.setting), plan.mode, plan.memory, names]
    return "|".join([*key, by] if by else key)


def _recalled(predicted: ContractionPlan, record: object, kernels: tuple[Kernel, ...]) -> ContractionPlan | None:
    """The plan from an earlier measurement; None if the record is invalid, so that the plan is measured again.

    Records from before kernels had names are invalid.
    """
    if not isinstance(record, dict):
        return None
    candidates = {
        (candidate.groups, candidate.order): candidate
        for candidate in (entry.variant.candidate for entry in predicted.considered)
    }
    by_name, conditions = {kernel.name: kernel for kernel in kernels}, conditions_of(predicted)
    considered = []
    try:
        for entry in record["timed"]:
            candidate = candidates[tuple(map(tuple, entry["groups"])), tuple(entry["order"])]
            kernel, tile, seconds = by_name[entry["kernel"]], int(entry["tile"]), float(entry["seconds"])
            if not runs(kernel, candidate.schedule, conditions):
                return None
            options = tuple((name, int(size)) for name, size in entry["options"].items())
            names = [[name for name, _ in variant.options] for variant in kernel.variants(candidate, conditions)]
            sizes = [tile, *(size for _, size in options)]
            if [name for name, _ in options] not in names or min(sizes) < 1 or not 0 < seconds < math.inf:
                return None
            variant = Variant(candidate, predicted.batch, kernel.name, tile, options)
            considered.append(Considered(variant, kernel.seconds(variant, conditions), seconds))
        dense = float(record["dense"]) if "dense" in record else None
        if not considered or not (dense is None or 0 < dense < math.inf):
            return None
        return predicted.timed(tuple(considered), dense)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None
