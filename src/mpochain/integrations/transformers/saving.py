"""``save_pretrained`` and ``push_to_hub`` of transformers, for models with compressed layers.

Both methods of ``PreTrainedModel`` are replaced by ones that write models with compressed layers here, and call the
original for all others. Nothing is attached to a model, so that copies, pickled models and models whose layers were
replaced by hand are written right, and a model that became dense again is written by transformers.
"""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

__all__ = ["replace_methods"]

_REPLACED = "_mpochain_original"


def replace_methods() -> None:
    """Replace the two methods of ``PreTrainedModel``; calling it again does nothing."""
    from transformers import modeling_utils

    model_class: Any = modeling_utils.PreTrainedModel
    if hasattr(model_class.save_pretrained, _REPLACED):
        return
    save_pretrained, push_to_hub = model_class.save_pretrained, model_class.push_to_hub

    @wraps(save_pretrained)
    def save(self: Any, save_directory: Any, *arguments: Any, **named: Any) -> Any:
        from mpochain.integrations.transformers.writing import is_written_here, remove_outdated, write_pretrained

        if is_written_here(self):
            return write_pretrained(self, save_pretrained, save_directory, *arguments, **named)
        result = save_pretrained(self, save_directory, *arguments, **named)
        remove_outdated(self, Path(save_directory))
        return result

    @wraps(push_to_hub)
    def push(self: Any, *arguments: Any, **named: Any) -> Any:
        from mpochain.integrations.transformers.publishing import publish
        from mpochain.integrations.transformers.writing import is_written_here

        return (publish if is_written_here(self) else push_to_hub)(self, *arguments, **named)

    setattr(save, _REPLACED, save_pretrained)
    setattr(push, _REPLACED, push_to_hub)
    model_class.save_pretrained, model_class.push_to_hub = save, push
