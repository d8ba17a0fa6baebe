"""Random initialisation of cores for a given standard deviation of the matrix, and of biases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mpochain.spec import ChainSpec

__all__ = ["core_std", "normal_", "uniform_bias_"]


def core_std(spec: ChainSpec, weight_std: float) -> float:
    """Standard deviation of independent core entries for which the matrix entries have ``weight_std``.

    An entry of the matrix is a sum of ``prod(bonds)`` products of ``n`` independent zero-mean numbers, so
    ``var(W) = s^(2n) prod(bonds)``, and ``s = (weight_std / sqrt(prod(bonds)))^(1/n)``.

    Example:
        >>> core_std(ChainSpec((8, 8), (8, 8), max_bond=16), weight_std=0.04)
        0.1
    """
    return (weight_std / math.sqrt(math.prod(spec.bonds))) ** (1 / spec.sites)


def normal_(
    cores: Sequence[Tensor], spec: ChainSpec, weight_std: float, generator: torch.Generator | None = None
) -> None:
    """Fill cores in place with normal numbers such that matrix entries have the standard deviation ``weight_std``."""
    std = core_std(spec, weight_std)
    with torch.no_grad():
        for core in cores:
            core.normal_(0.0, std, generator=generator)


def uniform_bias_(bias: Tensor | None, in_features: int) -> None:
    """Fill a bias in place as ``nn.Linear`` does, uniform in ``+- 1 / sqrt(in_features)``; None is ignored."""
    if bias is not None:
        bound = 1 / math.sqrt(in_features)
        torch.nn.init.uniform_(bias, -bound, bound)
