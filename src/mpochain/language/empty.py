"""Language models without their weights, as their configuration describes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mpochain.errors import CheckpointError
from mpochain.language.pretrained import DTYPES, imported_transformers, read_configuration, require_dtype

__all__ = ["empty_language_model"]


def empty_language_model(source: str | Path, *, dtype: str = "auto") -> tuple[Callable[[], nn.Module], torch.dtype]:
    """A function that builds the model that a configuration describes, in float32 and without its weights.

    Args:
        source: a folder with a ``config.json``, or a name on the Hugging Face hub.
        dtype: see :func:`load_language_model`.

    Returns:
        The function, which builds on torch's default device, and the type of the stored weights.

    Raises:
        CheckpointError: there is no configuration, or it describes no causal language model.
        ArgumentError: the dtype is unknown.
        MissingDependencyError: transformers is not installed.
    """
    require_dtype(dtype)
    transformers = imported_transformers()
    config = read_configuration(transformers, source)

    def build() -> nn.Module:
        try:
            model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except (ValueError, TypeError, AttributeError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{source} describes no causal language model: {line}") from error
        return model

    stored = getattr(config, "dtype", None) if dtype == "auto" else DTYPES[dtype]
    return build, stored if isinstance(stored, torch.dtype) else torch.float32
