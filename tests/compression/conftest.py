"""A small model with a tied head, and batches for it."""

from __future__ import annotations

import pytest
import torch
from tied_net import TiedNet


@pytest.fixture
def net():
    torch.manual_seed(0)
    return TiedNet()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(11, (4, 9), generator=generator) for _ in range(3)]
