"""A small model for tests of compression: a gated perceptron between an embedding and a tied head."""

from __future__ import annotations

import torch
from torch import nn


class TiedNet(nn.Module):
    """Two layers with the same input, one after them, and a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 12)
        nn.init.normal_(self.embedding.weight, std=0.5)  # so that its predictions are far from certain
        self.left, self.right = nn.Linear(12, 20), nn.Linear(12, 20, bias=False)
        self.down = nn.Linear(20, 12)
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(x + self.down(torch.relu(self.left(x)) * self.right(x)))
