"""Devices by name, with a check that they are there."""

from __future__ import annotations

import torch

from mpochain.errors import ArgumentError

__all__ = ["device_named"]


def device_named(name: str) -> torch.device:
    """The device of a name such as ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.

    Args:
        name: the name; ``"auto"`` for the accelerator of this machine, or the CPU without one.

    Raises:
        ArgumentError: the name is not that of a device, or this machine or build of torch lacks it.

    Example:
        >>> device_named("cpu"), device_named("auto").type in ("cpu", "cuda", "mps", "xpu")
        (device(type='cpu'), True)
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError, ValueError):
        raise ArgumentError(f"there is no device {name!r}; name cpu, cuda, cuda:1, mps or auto") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if accelerator is None or device.type != accelerator.type:
        available = "only the CPU" if accelerator is None else f"{accelerator.type} and the CPU"
        raise ArgumentError(f"device {name} is not available; torch {torch.__version__} finds {available} here")
    count = torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        raise ArgumentError(f"device {name} does not exist; the devices of this machine are numbered 0 to {count - 1}")
    return device
