"""Parameters in groups by their learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mpochain.errors import SpecError
from mpochain.nn import learning_rate_scales

__all__ = ["parameter_groups", "scaled_groups"]


def parameter_groups(
    model: nn.Module, learning_rate: float, *, scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """The trainable parameters for any optimiser of torch, one group for each learning rate.

    Schedulers that multiply the rate of each group, such as those of the Trainer of transformers, keep the factors.

    Args:
        model: its parameters without ``requires_grad`` are left out.
        learning_rate: of parameters whose factor is 1.
        scales: factors by parameter name, 1 for those that are not named; by default cores go by their fan-in,
            :func:`mpochain.nn.learning_rate_scales`.

    Returns:
        Groups with ``params``, ``lr`` and ``scale``, the factor.

    Raises:
        SpecError: a scale for a parameter that the model has not.

    Example:
        >>> import torch
        >>> from mpochain.nn import MPOLinear
        >>> layer = MPOLinear(128, 128, out_dims=(8, 16), in_dims=(8, 16), max_bond=4)
        >>> optimizer = torch.optim.AdamW(parameter_groups(layer, 0.001))
        >>> [group["lr"] for group in optimizer.param_groups]  # both cores, and the bias
        [0.004, 0.008, 0.001]
    """
    found = scaled_groups(model, learning_rate_scales(model) if scales is None else scales)
    return [{**group, "lr": learning_rate * group["scale"]} for group in found]


def scaled_groups(model: nn.Module, scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """The trainable parameters, one group for each factor of the learning rate.

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
    return [{"params": parameters, "scale": scale} for scale, parameters in groups.items()]
