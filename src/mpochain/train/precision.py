"""Element type of the matrix products of a training run."""

from __future__ import annotations

import torch
from torch import nn

from mpochain.train.config import FinetuneConfig

__all__ = ["with_products_of"]


def with_products_of(model: nn.Module, config: FinetuneConfig) -> FinetuneConfig:
    """The configuration with matrix products in the model's own type: bfloat16 for a model in bfloat16.

    Products of a float16 model are float32, because gradients in float16 overflow.

    Example:
        >>> model = nn.Linear(2, 2, dtype=torch.bfloat16)
        >>> with_products_of(model, FinetuneConfig()).autocast
        'bfloat16'
    """
    if config.autocast is None and any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()):
        return config.model_copy(update={"autocast": "bfloat16"})
    return config
