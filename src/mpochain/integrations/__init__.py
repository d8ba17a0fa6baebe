"""Connections with other libraries, one room each: what makes them read, write and run compressed models.

``import mpochain`` imports none of them. What they must know is told to each once it is imported, see
:func:`mpochain.integrations.later.after_import`.
"""

from __future__ import annotations

from mpochain.integrations.later import after_import

__all__ = ["connect"]


def connect() -> None:
    """Tell other libraries of compressed models as soon as they are imported; ``import mpochain`` calls it."""
    after_import("transformers.modeling_utils", _connect_transformers)


def _connect_transformers() -> None:
    from mpochain.integrations.transformers import register

    register()
