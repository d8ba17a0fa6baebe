"""Layers that hold chains."""

from mpochain.nn.execution import set_execution
from mpochain.nn.linear import MPOLinear

__all__ = ["MPOLinear", "set_execution"]
