"""Tensors of a file that an earlier version wrote, under the names that they have in a model now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mpochain.nn.former_names import former_names_in

__all__ = ["PresentNames", "present_names"]


class PresentNames:
    """An open safetensors file whose tensors are read by their present names.

    Args:
        stored: the open file.
        names: present names of some of its tensors, by the names in the file.
    """

    def __init__(self, stored: Any, names: Mapping[str, str]) -> None:
        self._stored = stored
        self._in_file = {names.get(name, name): name for name in stored.keys()}  # noqa: SIM118  # no dictionary

    def keys(self) -> list[str]:
        """Present names of all tensors."""
        return list(self._in_file)

    def get_slice(self, name: str) -> Any:
        """Shape and element type of a tensor, see safetensors."""
        return self._stored.get_slice(self._in_file[name])

    def get_tensor(self, name: str) -> Any:
        """A tensor of the file."""
        return self._stored.get_tensor(self._in_file[name])


def present_names(stored: Any, model: nn.Module) -> dict[str, str]:
    """Present names of the tensors in a file that have other names in a model now, by their names in the file.

    Args:
        stored: the open safetensors file, or anything with its ``keys()``.
        model: the model that the file is for, with its compressed layers in place.

    Example:
        >>> from mpochain.nn import InterpolativeLinear
        >>> present_names({"0.rows": 1, "0.bias": 2}, nn.Sequential(InterpolativeLinear(4, 3, 2)))
        {'0.rows': '0.rows.weight'}
    """
    held = set(stored.keys())
    # A file with both names belongs to another model, and is refused as such.
    return {former: name for former, name in former_names_in(model).items() if former in held and name not in held}
