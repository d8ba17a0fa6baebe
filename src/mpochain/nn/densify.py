"""A compressed model made dense again."""

from __future__ import annotations

from torch import nn

from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.linear import MPOLinear

__all__ = ["to_dense"]


def to_dense(model: nn.Module) -> nn.Module:
    """Put an ``nn.Linear`` of the same function in place of every compressed layer of a model.

    Args:
        model: changed in place, or a compressed layer itself, which is left as it is.

    Returns:
        The model, or the dense layer.

    Example:
        >>> to_dense(nn.Sequential(MPOLinear(4, 3, max_bond=2, bias=False)))
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=False)
        )
    """
    if isinstance(model, MPOLinear | InterpolativeLinear):
        return model.to_linear()
    made: dict[nn.Module, nn.Linear] = {}
    for parent in list(model.modules()):
        # Not named_children(), which leaves out the second name of a module.
        for name, child in list(parent._modules.items()):
            if isinstance(child, MPOLinear | InterpolativeLinear):
                # One layer in several places stays one.
                setattr(parent, name, made.setdefault(child, child.to_linear()))
    return model
