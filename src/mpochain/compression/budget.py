"""Budgets as users write them: shares, bytes of the saved model or of its layers, bits per weight, and errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from mpochain.compression.target import Target
from mpochain.errors import ArgumentError

__all__ = [
    "Size",
    "bits_budget",
    "byte_budget",
    "bytes_in_memory",
    "error_budget",
    "require_budget",
    "size_budget",
    "speed_share",
]

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# No model takes a number of more digits.
_NUMBER = r"\s*([0-9]{0,18}\.?[0-9]{1,18})\s*"
_SIZE = re.compile(_NUMBER + r"([kKmMgG]?i?B)(\s+of\s+layers)?\s*")
_BITS = re.compile(_NUMBER + r"[bB]its?(\s+per\s+weight)?\s*")


@dataclass(frozen=True)
class Size:
    """A budget in bytes.

    Attributes:
        bytes: the limit.
        of_layers: whether it is that of the compressed layers alone, instead of the whole saved model.
    """

    bytes: int
    of_layers: bool


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


def size_budget(budget: float | str) -> Size | None:
    """Parse a budget in bytes; None for other kinds of budget.

    Example:
        >>> size_budget("170MB"), size_budget("100MiB of layers"), size_budget("60%")
        (Size(bytes=170000000, of_layers=False), Size(bytes=104857600, of_layers=True), None)
    """
    match = _SIZE.fullmatch(budget) if isinstance(budget, str) else None
    if match is None:
        return None
    return Size(int(Fraction(match[1]) * _UNITS[match[2].upper()]), match[3] is not None)


def bits_budget(budget: float | str) -> float | None:
    """Parse a budget in bits per weight of the layers; None for other kinds of budget.

    Example:
        >>> bits_budget("3 bits"), bits_budget("3.5 bits per weight"), bits_budget("3MB")
        (3.0, 3.5, None)
    """
    match = _BITS.fullmatch(budget) if isinstance(budget, str) else None
    return None if match is None else float(match[1])


def byte_budget(budget: float | str, targets: Mapping[str, Target], *, outside: int = 0) -> int:
    """Storage limit of all layers together, in bytes.

    Args:
        budget: share of the present storage, in ``(0, 1]`` or as ``"60%"``; bytes of the saved model, as ``"200MB"``
            or ``"190MiB"``; bytes of the layers, as ``"100MB of layers"``; or bits per weight of the layers, as
            ``"3 bits"`` or ``"3.5 bits"``, with everything that is stored in place of a weight.
        targets: dense layers by name.
        outside: bytes of the saved model outside of these layers.

    Returns:
        The limit; negative if the rest of the model exceeds a budget in bytes.

    Raises:
        ArgumentError: the share is out of range, or the unit is unknown.

    Example:
        >>> from torch import nn
        >>> targets = {name: Target.open(name, nn.Linear(100, size)) for name, size in (("a", 100), ("b", 50))}
        >>> byte_budget(0.5, targets), byte_budget("50%", targets), byte_budget("4 bits", targets)
        (30000, 30000, 7500)
        >>> byte_budget("20kB of layers", targets), byte_budget("20kB", targets, outside=4000)
        (20000, 16000)
    """
    size, bits = size_budget(budget), bits_budget(budget)
    if bits is not None:
        return int(Fraction(bits) * sum(target.parameters for target in targets.values()) / 8)
    if size is not None:
        return size.bytes - (0 if size.of_layers else outside)
    return int(_share(budget) * sum(target.bytes for target in targets.values()))


def require_budget(budget: float | str) -> None:
    """Refuse an invalid budget before a model is loaded.

    Raises:
        ArgumentError: the budget cannot be parsed or is out of range.
    """
    if error_budget(budget) is None and size_budget(budget) is None and bits_budget(budget) is None:
        _share(budget)


def speed_share(speed: float | str) -> float:
    """Share of the layers' multiply-adds that a second budget allows.

    Raises:
        ArgumentError: it is no share in ``(0, 1]``.

    Example:
        >>> speed_share(0.7), speed_share("70%")
        (0.7, 0.7)
    """
    advice = "give the share of the layers' multiply-adds to keep, in (0, 1], such as 0.7 or '70%'"
    share = _number(speed)
    if share is None:
        raise ArgumentError(f"speed {speed!r} is not a share; {advice}")
    if not 0.0 < share <= 1.0:
        raise ArgumentError(f"speed {speed!r} is out of range; {advice}")
    return share


def _number(value: object) -> float | None:
    """A number or a percentage as text; None for anything else."""
    if isinstance(value, str):
        match = re.fullmatch(_NUMBER + r"%\s*", value)
        return None if match is None else float(match[1]) / 100
    return None if isinstance(value, bool) or not isinstance(value, float | int) else float(value)


def _share(budget: float | str) -> float:
    advice = (
        "give a share in (0, 1] such as 0.6 or '60%', the size of the saved model such as '200MB', that of its layers "
        "such as '100MB of layers', '3 bits' per weight of the layers, or '5% error'"
    )
    share = _number(budget)
    if share is None and isinstance(budget, str):
        raise ArgumentError(f"budget {budget!r} is neither a share, a size, bits per weight nor an error; {advice}")
    if share is None or not 0.0 < share <= 1.0:
        raise ArgumentError(f"budget {budget!r} is out of range; {advice}")
    return share
