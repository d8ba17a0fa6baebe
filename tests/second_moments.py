"""Second moments with a spectrum that falls by a power law, and a few large channels, as those of language models."""

from __future__ import annotations

import torch


def second_moments(size, power=1.0, seed=0, outliers=2):
    random = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.float64)).Q
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -power
    channels = torch.ones(size, dtype=torch.float64)
    channels[torch.randperm(size, generator=random)[:outliers]] = 10.0
    return channels[:, None] * ((vectors * values) @ vectors.T) * channels


def squared_error(matrix, short, inputs, outputs=None):
    """``tr(G E H E^T)``."""
    error = (matrix - short.dequantized()).double()
    weighted = error @ inputs.double()
    return float((error * (weighted if outputs is None else outputs.double() @ weighted)).sum())
