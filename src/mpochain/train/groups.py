"""Parameters in groups by their learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mpochain.errors import SpecError
from mpochain.surgery import learning_rate_scales

__all__ = ["parameter_groups", "scaled_groups"]


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    *,
    weight_decay: float | None = None,
    scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters for any optimiser of torch, one group for each learning rate.

    Schedulers that multiply the rate of each group, such as those of the Trainer of transformers, keep the factors.

    Args:
        model: its parameters without ``requires_grad`` are left out.
        learning_rate: of parameters whose factor is 1.
        weight_decay: of AdamW, where it is multiplied by the rate; each group has it divided by its factor, so that all
            parameters shrink alike. None leaves it to the optimiser: cores then shrink as much faster than dense
            weights as they learn.
        scales: factors by parameter name, 1 for those that are not named; by default cores go by their fan-in,
            :func:`mpochain.surgery.learning_rate_scales`.

    Returns:
        Groups with ``params``, ``lr``, ``scale``, the factor, and ``weight_decay`` if it was given.

    Raises:
        SpecError: a scale for a parameter that the model has not.

    Example:
        >>> import torch
        >>> from mpochain.nn import MPOLinear
        >>> layer = MPOLinear(128, 128, out_dims=(8, 16), in_dims=(8, 16), max_bond=4)
        >>> optimizer = torch.optim.AdamW(parameter_groups(layer, 0.001, weight_decay=0.1))
        >>> [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]  # both cores, and the bias
        [(0.004, 0.025), (0.008, 0.0125), (0.001, 0.1)]
    """
    found = scaled_groups(model, learning_rate_scales(model) if scales is None else scales, weight_decay)
    return [{**group, "lr": learning_rate * group["scale"]} for group in found]


def scaled_groups(
    model: nn.Module, scales: Mapping[str, float], weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """The trainable parameters, one group for each factor of the learning rate.

    Args:
        model: its parameters without ``requires_grad`` are left out.
        scales: factors by parameter name, 1 for those that are not named.
        weight_decay: of parameters whose factor is 1, divided by the factor for others; None for none in the groups.

    Raises:
        SpecError: a scale for a parameter that the model has not.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    unknown = dict(scales)
    for name, parameter in model.named_parameters():
        scale = unknown.pop(name, 1.0)
        if parameter.requires_grad:
            groups.setdefault(scale, []).append(parameter)
    if unknown:
        raise SpecError(f"the model has no parameters {sorted(unknown)[:3]}; scales go by the names of the model")
    found: list[dict[str, Any]] = [{"params": parameters, "scale": scale} for scale, parameters in groups.items()]
    if weight_decay is not None:
        for group in found:
            group["weight_decay"] = weight_decay / group["scale"]
    return found
