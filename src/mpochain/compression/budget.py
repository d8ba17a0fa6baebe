"""Budgets as users write them: shares, sizes in bytes, and errors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from mpochain.compression.target import Target
from mpochain.errors import ArgumentError

__all__ = ["bytes_in_memory", "error_budget", "parameter_budget", "require_budget"]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_in_memory(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of a model; tied tensors count once.

    Example:
        >>> bytes_in_memory(nn.Linear(2, 3))
        36
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def error_budget(budget: float | str) -> float | None:
    """Parse an error budget such as ``"5% error"`` to a relative error; None for other kinds of budget.

    Raises:
        ArgumentError: the error is out of range.

    Example:
        >>> error_budget("5% error"), error_budget("5%")
        (0.05, None)
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*error\s*", budget) if isinstance(budget, str) else None
    if match is None:
        return None
    error = float(match[1]) / 100
    if not 0.0 < error < 1.0:
        raise ArgumentError(f"budget {budget!r} is out of range; an error must be above 0 and below 100 percent")
    return error


def parameter_budget(budget: float | str, targets: Mapping[str, Target]) -> int:
    """Storage limit of all layers together, in elements of their weights; indices count by their bytes.

    Args:
        budget: share of the present storage, in ``(0, 1]`` or as ``"60%"``; or bytes, as ``"200MB"``, ``"190MiB"``.
        targets: dense layers by name; a budget in bytes requires one element size for all.

    Raises:
        ArgumentError: the share is out of range, the unit is unknown, or the layers have several element sizes.

    Example:
        >>> from torch import nn
        >>> targets = {name: Target.open(name, nn.Linear(100, size)) for name, size in (("a", 100), ("b", 50))}
        >>> parameter_budget(0.5, targets), parameter_budget("50%", targets), parameter_budget("20kB", targets)
        (7500, 7500, 5000)
    """
    share, size = _share_or_bytes(budget)
    if size is None:
        return int(share * sum(target.parameters for target in targets.values()))
    sizes = {target.element_size for target in targets.values()}
    if len(sizes) != 1:
        raise ArgumentError(
            f"a budget in bytes needs layers of one element size, got sizes {sorted(sizes)}; give a share instead"
        )
    return size // sizes.pop()


def require_budget(budget: float | str) -> None:
    """Refuse an invalid budget before a model is loaded.

    Raises:
        ArgumentError: the budget cannot be parsed or is out of range.
    """
    if error_budget(budget) is None:
        _share_or_bytes(budget)


def _share_or_bytes(budget: float | str) -> tuple[float, int | None]:
    """``(share, None)`` for a share, ``(1.0, bytes)`` for a size."""
    advice = "give a share in (0, 1] such as 0.6 or '60%', bytes such as '200MB', or '5% error'"
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%|[kKmMgG]?i?B)\s*", budget)
        if match is None:
            raise ArgumentError(f"budget {budget!r} is neither a share, a size nor an error; {advice}")
        number, unit = float(match[1]), match[2].upper()
        if unit != "%":
            return 1.0, int(number * _UNITS[unit])
        budget = number / 100
    if isinstance(budget, bool) or not isinstance(budget, float | int) or not 0.0 < budget <= 1.0:
        raise ArgumentError(f"budget {budget!r} is out of range; {advice}")
    return float(budget), None
