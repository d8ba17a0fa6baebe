"""Layers that hold chains."""

from mpochain.nn.linear import MPOLinear

__all__ = ["MPOLinear"]
