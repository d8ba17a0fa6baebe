"""Reasons why a layer cannot be compressed, although it is linear or an embedding."""

from __future__ import annotations

from torch import nn

from mpochain.errors import DTypeError
from mpochain.nn.dense import dense_shape, require_plain

__all__ = ["reason_against", "why_not"]


def reason_against(module: nn.Module, name: str | None = None) -> str:
    """Why a linear layer or embedding cannot be compressed; empty if it can, and for other modules.

    Args:
        module: any module.
        name: name of the module in the reason.

    Example:
        >>> reason_against(nn.Linear(2, 2)), reason_against(nn.LSTM(2, 2))
        ('', '')
        >>> reason_against(nn.Linear(2, 2, device="meta"))
        'the weight has no values yet (lazy or on the meta device); materialise it first'
    """
    if dense_shape(module) is not None or isinstance(module, nn.Linear | nn.Embedding):
        try:
            require_plain(module, name)
        except DTypeError as error:
            return str(error)
    return ""


def why_not(module: nn.Module, name: str) -> str:
    """The reason in brackets, to end an error message; empty if there is none."""
    reason = reason_against(module, name)
    return f" ({reason})" if reason else ""
