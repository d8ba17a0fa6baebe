"""Device and element type of a model that was loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from mpochain.errors import ArgumentError, MissingDependencyError

__all__ = ["DeviceMap", "Placement", "device_named"]

DeviceMap: TypeAlias = str | int | torch.device | Mapping[str, str | int | torch.device] | None
"""A device, ``"auto"``, a device for each part of a model by name, or None."""

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class Placement:
    """Device and element type that a model gets once it is loaded.

    Args:
        device_map: a device or its name; ``"auto"`` for all accelerators of the machine, as much as fits, and the CPU
            without one; or a device for each part of the model by name, which takes the package accelerate. None to
            leave the model where it is.
        dtype: floating-point type or its name, as ``"bfloat16"``; None or ``"auto"`` for the stored types.

    Raises:
        ArgumentError: a device is not there, or a type is none of floating-point numbers.
        MissingDependencyError: accelerate is needed, and not installed.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> Placement("cpu", "bfloat16").apply(model)
        >>> model.weight.dtype
        torch.bfloat16
    """

    def __init__(self, device_map: DeviceMap, dtype: str | torch.dtype | None) -> None:
        self._dtype = _dtype(dtype)
        self._map: dict[str, torch.device] | None = None
        self._device: torch.device | None = None
        self._is_automatic = device_map == "auto" and device_named("auto").type != "cpu"
        if isinstance(device_map, Mapping):
            self._map = {name: _device(device) for name, device in device_map.items()}
        elif device_map is not None and not self._is_automatic:
            self._device = _device(device_map)
        if self._map is not None or self._is_automatic:
            self._accelerate: Any = _accelerate()

    def apply(self, model: nn.Module) -> None:
        """Give a model its element type, then its devices.

        Raises:
            ArgumentError: a part that is named does not exist, or a part has no device.
        """
        if self._dtype is not None:
            model.to(self._dtype)
        if self._device is not None:
            model.to(self._device)
            return
        if self._is_automatic:
            blocks = list(getattr(model, "_no_split_modules", None) or ())
            devices = self._accelerate.infer_auto_device_map(model, no_split_module_classes=blocks)
            self._accelerate.dispatch_model(model, device_map=devices)
        elif self._map is not None:
            unknown = sorted(set(self._map) - {name for name, _ in model.named_modules(remove_duplicate=False)})
            if unknown:
                raise ArgumentError(f"device_map: the model has no part {unknown[0]!r}; name modules of the model")
            try:
                self._accelerate.dispatch_model(model, device_map=self._map)
            except ValueError as error:
                raise ArgumentError(f"device_map: {error}") from error


def _accelerate() -> Any:
    try:
        import accelerate
    except ImportError as error:
        raise MissingDependencyError(
            "a device_map with several devices needs accelerate; install it with pip install 'mpochain[hf]'"
        ) from error
    return accelerate


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    kind = _TYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ArgumentError(f"dtype must be auto, one of {', '.join(_TYPES)}, or such a torch.dtype, got {dtype!r}")
    return kind


def _device(device: str | int | torch.device) -> torch.device:
    if isinstance(device, bool) or not isinstance(device, str | int | torch.device):
        raise ArgumentError(f"device_map: expected a device, its name or its number, got {device!r}")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if isinstance(device, int):
        if accelerator is None:
            raise ArgumentError(f"device_map: there is no device {device}, since torch finds only the CPU here")
        return device_named(f"{accelerator.type}:{device}")
    return device_named(str(device))


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
