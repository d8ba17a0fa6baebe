"""Model size: parameters and multiply-adds per token."""

from __future__ import annotations

from torch import nn

from mpochain.nn import MPOLinear

__all__ = ["fewest_macs_per_token", "macs_per_token", "parameter_count"]


def parameter_count(module: nn.Module) -> int:
    """Number of parameters, counting shared ones once.

    Example:
        >>> parameter_count(nn.Linear(3, 2))
        8
    """
    return sum(p.numel() for p in module.parameters())


def macs_per_token(module: nn.Module, tokens: int) -> int:
    """Multiply-adds of all linear layers per token, in the plans for ``tokens`` rows; attention is not counted.

    The plans minimise the predicted time, not the multiply-adds.

    Example:
        >>> macs_per_token(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), tokens=8)
        6
    """
    total = 0
    for layer in module.modules():
        if isinstance(layer, MPOLinear):
            total += round(sum(plan.macs / plan.batch for plan in layer.plan(tokens)))
        elif isinstance(layer, nn.Linear):
            total += layer.weight.numel()
    return total


def fewest_macs_per_token(module: nn.Module) -> int:
    """Minimum of the multiply-adds of all linear layers per token.

    A token is swept through each chain or multiplied by its rebuilt matrix, whichever takes fewer multiply-adds. The
    cost of rebuilding is not counted, since any number of tokens may share it.

    Example:
        >>> from studies.picogpt import build
        >>> [fewest_macs_per_token(build(bond, seed=0)) for bond in (None, 4, 16)]
        [794752, 432704, 794752]
    """
    total = 0
    for layer in module.modules():
        if isinstance(layer, MPOLinear):
            dense = layer.in_features * layer.out_features
            total += min(sum(spec.macs() for spec in layer.specs), dense)
        elif isinstance(layer, nn.Linear):
            total += layer.weight.numel()
    return total
