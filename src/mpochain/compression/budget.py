"""How small a model is to be, as its user says it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from mpochain.errors import SpecError
from mpochain.nn.dense import weight_and_bias

__all__ = ["error_budget", "parameter_budget", "require_budget"]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def error_budget(budget: float | str) -> float | None:
    """The most of each layer that may be left out, of ``"5% error"``; None for a budget of another kind.

    Raises:
        SpecError: no such error.

    Example:
        >>> error_budget("5% error"), error_budget("5%")
        (0.05, None)
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*error\s*", budget) if isinstance(budget, str) else None
    if found is None:
        return None
    error = float(found[1]) / 100
    if not 0.0 < error < 1.0:
        raise SpecError(f"budget {budget!r} is out of range; an error is over 0 and under 100 percent")
    return error


def parameter_budget(budget: float | str, layers: Mapping[str, nn.Module]) -> int:
    """The most parameters that all layers together may have.

    Args:
        budget: a share of what they have now, in ``(0, 1]``, or as ``"60%"``; or bytes, as ``"200MB"`` or ``"190MiB"``.
        layers: dense layers, all of one element size if the budget is in bytes.

    Raises:
        SpecError: no such share, an unknown unit, or layers of several element sizes.

    Example:
        >>> layers = {"a": nn.Linear(100, 100), "b": nn.Linear(100, 50)}
        >>> parameter_budget(0.5, layers), parameter_budget("50%", layers), parameter_budget("20kB", layers)
        (7500, 7500, 5000)
    """
    share, sized = _share_or_bytes(budget)
    weights = [weight_and_bias(layer)[0] for layer in layers.values()]
    if sized is None:
        return int(share * sum(weight.numel() for weight in weights))
    sizes = {weight.element_size() for weight in weights}
    if len(sizes) != 1:
        raise SpecError(f"a budget in bytes needs layers of one element size, these have {sorted(sizes)}")
    return sized // sizes.pop()


def require_budget(budget: float | str) -> None:
    """Refuse what is no budget for any model, before there is one.

    Raises:
        SpecError: it is none, or out of range.
    """
    if error_budget(budget) is None:
        _share_or_bytes(budget)


def _share_or_bytes(budget: float | str) -> tuple[float, int | None]:
    """A share, or 1 and bytes."""
    help_ = "give a share in (0, 1] such as 0.6 or '60%', bytes such as '200MB', or '5% error'"
    if isinstance(budget, str):
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%|[kKmMgG]?i?B)\s*", budget)
        if found is None:
            raise SpecError(f"budget {budget!r} is neither a share nor a size; {help_}")
        number, unit = float(found[1]), found[2].upper()
        if unit != "%":
            return 1.0, int(number * _UNITS[unit])
        budget = number / 100
    if isinstance(budget, bool) or not isinstance(budget, float | int) or not 0.0 < budget <= 1.0:
        raise SpecError(f"budget {budget!r} is out of range; {help_}")
    return float(budget), None
