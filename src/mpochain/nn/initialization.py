"""Random initialisation of cores for a given standard deviation of the matrix, and of biases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mpochain.decomposition import core_std
from mpochain.spec import ChainSpec

__all__ = ["normal_", "uniform_bias_"]


def normal_(
    cores: Sequence[Tensor], spec: ChainSpec, weight_std: float, generator: torch.Generator | None = None
) -> None:
    """Fill cores in place with normal numbers such that matrix entries have the standard deviation ``weight_std``.

    Cores on the meta device, which have no numbers, are left: torch takes a millisecond for each.
    """
    std = core_std(spec.bonds, weight_std)
    with torch.no_grad():
        for core in cores:
            if not core.is_meta:
                core.normal_(0.0, std, generator=generator)


def uniform_bias_(bias: Tensor | None, in_features: int) -> None:
    """Fill a bias in place as ``nn.Linear`` does, uniform in ``+- 1 / sqrt(in_features)``; None is ignored."""
    if bias is not None and not bias.is_meta:
        bound = 1 / math.sqrt(in_features)
        torch.nn.init.uniform_(bias, -bound, bound)
