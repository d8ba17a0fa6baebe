"""Optimiser parameter groups, one per learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mpochain.distributed import reshard
from mpochain.errors import ArgumentError
from mpochain.surgery import learning_rate_scales

__all__ = ["parameter_groups", "scaled_groups"]


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    *,
    weight_decay: float | None = None,
    scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups for any torch optimiser, one group per learning rate.

    Schedulers that multiply the rate of each group, such as those of the transformers Trainer, keep the factors.
    Parameters that FSDP2 gathered for an earlier call are sharded again, since only the shards are trained.

    Args:
        model: parameters without ``requires_grad`` are left out.
        learning_rate: learning rate of parameters whose factor is 1.
        weight_decay: weight decay for AdamW, which multiplies it by the learning rate. It is divided by the factor of
            each group, so that all parameters shrink by the same share. None leaves it to the optimiser: cores, which
            have larger rates, then shrink faster than dense weights.
        scales: learning rate factors by parameter name, 1 for others; by default
            :func:`mpochain.surgery.learning_rate_scales`, based on the fan-in of cores.

    Returns:
        Groups with ``params``, ``lr``, the factor ``scale``, and ``weight_decay`` if it was given.

    Raises:
        ArgumentError: ``scales`` names a parameter that the model does not have.

    Example:
        >>> import torch
        >>> from mpochain.nn import MPOLinear
        >>> layer = MPOLinear(128, 128, out_dims=(8, 16), in_dims=(8, 16), max_bond=4)
        >>> optimizer = torch.optim.AdamW(parameter_groups(layer, 0.001, weight_decay=0.1))
        >>> [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]  # both cores, and the bias
        [(0.004, 0.025), (0.008, 0.0125), (0.001, 0.1)]
    """
    groups = scaled_groups(model, learning_rate_scales(model) if scales is None else scales, weight_decay)
    return [{**group, "lr": learning_rate * group["scale"]} for group in groups]


def scaled_groups(
    model: nn.Module, scales: Mapping[str, float], weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups, one per learning rate factor.

    Args:
        model: parameters without ``requires_grad`` are left out.
        scales: learning rate factors by parameter name, 1 for others.
        weight_decay: weight decay at factor 1, divided by the factor of each group; None to set none.

    Returns:
        Groups with ``params``, the factor ``scale``, and ``weight_decay`` if it was given.

    Raises:
        ArgumentError: ``scales`` names a parameter that the model does not have.
    """
    reshard(model)
    parameters_by_scale: dict[float, list[nn.Parameter]] = {}
    unknown = dict(scales)
    for name, parameter in model.named_parameters():
        scale = unknown.pop(name, 1.0)
        if parameter.requires_grad:
            parameters_by_scale.setdefault(scale, []).append(parameter)
    if unknown:
        raise ArgumentError(
            f"scales: the model has no parameters {sorted(unknown)[:3]}; use the names in model.named_parameters()"
        )
    groups: list[dict[str, Any]] = [
        {"params": parameters, "scale": scale} for scale, parameters in parameters_by_scale.items()
    ]
    if weight_decay is not None:
        for group in groups:
            group["weight_decay"] = weight_decay / group["scale"]
    return groups
