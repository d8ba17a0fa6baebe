"""A small perceptron, rows for it, and whether two models hold the same numbers."""

from __future__ import annotations

import torch
from torch import nn


def perceptron(seed=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 8))


def rows(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(64, 16, generator=generator) for _ in range(count)]


def same(model, other):
    pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == other_name and torch.equal(x, y) for (name, x), (other_name, y) in pairs)
