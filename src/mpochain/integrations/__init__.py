"""Integrations with transformers and with export formats such as ONNX.

``import mpochain`` imports none of these libraries. transformers learns to read and write compressed models once it is
imported, see :func:`mpochain.integrations.later.after_import`.
"""

from __future__ import annotations

from mpochain.integrations.later import after_import

__all__ = ["connect"]


def connect() -> None:
    """Register compressed models with other libraries once these are imported; ``import mpochain`` calls it."""
    after_import("transformers.modeling_utils", _connect_transformers)


def _connect_transformers() -> None:
    from mpochain.integrations.transformers import register

    register()
