"""Training of codes: latent numbers whose rounded values are the codes, for the time of a training run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mpochain.nn.quantized.coded import CodedTensor
from mpochain.nn.quantized.layer import QuantizedLayer
from mpochain.quantization import packed, unpacked

__all__ = ["latent_codes", "stored_codes"]

# Largest distance of a number from the code to which it is rounded at first.
_BELOW_HALF = 0.49


@contextmanager
def latent_codes(module: nn.Module, weights: Mapping[nn.Module, Tensor] | None = None) -> Iterator[dict[str, str]]:
    """Hold the codes of quantised layers as float32 parameters, which are rounded to codes again on exit.

    Within the context the layers compute with the rounded numbers, and gradients are passed on to the numbers as if
    they were not rounded, see :func:`mpochain.nn.quantized.dequantization.straight_through`. The new parameters do
    not require gradients.

    Args:
        module: a quantised layer, or any module that contains some; codes of embeddings stay as they are.
        weights: dense weight ``(out_features, in_features)`` of some layers whose weight is in codes. The numbers then
            begin as near to what it would be in codes as they can without being rounded to other codes; without it
            they begin as the codes.

    Yields:
        Name of the new parameter of each tensor in codes, by the name of its scales.

    Example:
        >>> from mpochain.nn import QuantizedLinear
        >>> from mpochain.quantization import Scheme
        >>> layer = QuantizedLinear(4, 1, Scheme(2), bias=False)
        >>> with latent_codes(layer) as names:
        ...     layer.weight_latent.data = torch.tensor([[0.4, 0.6, -3.0, 2.0]])
        >>> names, layer.codes().codes
        ({'weight_scale': 'weight_latent'}, tensor([[0, 1, 0, 2]], dtype=torch.uint8))
    """
    tensors = list(_coded(module))
    names = {}
    try:
        for prefix, owner, coded in tensors:
            codes = unpacked(coded.stored(owner)[0], coded.scheme.bits, coded.columns).float()
            weight = None if weights is None else weights.get(owner)
            if weight is not None:
                codes += (_in_codes(weight, owner, coded) - codes).clamp_(-_BELOW_HALF, _BELOW_HALF)
            owner.register_parameter(coded.latent, nn.Parameter(codes, requires_grad=False))
            names[f"{prefix}{coded.name}_scale"] = f"{prefix}{coded.latent}"
        yield names
    finally:
        with torch.no_grad():
            for _, owner, coded in tensors:
                latent = owner._parameters.pop(coded.latent, None)
                if latent is not None:
                    codes = latent.round().clamp_(0, coded.scheme.largest_code).to(torch.uint8)
                    coded.stored(owner)[0].copy_(packed(codes, coded.scheme.bits))


def _in_codes(weight: Tensor, owner: nn.Module, coded: CodedTensor) -> Tensor:
    """A weight in units of its scales, with zero points added; zero where a scale is."""
    _, scales, zeros = coded.stored(owner)
    columns = torch.arange(coded.columns, device=scales.device) // coded.scheme.group
    units = weight.detach().float() / scales.detach().float()[:, columns]
    middle = coded.scheme.middle_code if zeros is None else zeros.float()[:, columns]
    return torch.nan_to_num(units + middle, 0.0, 0.0, 0.0)


def stored_codes(module: nn.Module) -> dict[str, Tensor]:
    """The packed codes that :func:`latent_codes` trains, by the name of their scales.

    Example:
        >>> stored_codes(nn.Linear(2, 2))
        {}
    """
    return {f"{prefix}{coded.name}_scale": coded.stored(owner)[0] for prefix, owner, coded in _coded(module)}


def _coded(module: nn.Module) -> Iterator[tuple[str, nn.Module, CodedTensor]]:
    """The tensors in codes with the prefix of their names in the module, and the modules that hold them."""
    for name, layer in module.named_modules():
        # Rows of a table are looked up by their codes.
        if isinstance(layer, QuantizedLayer) and not layer.looks_up:
            for coded in layer.coded:
                inside = coded.path.rpartition(".")[0]
                prefix = ".".join(filter(None, (name, inside)))
                yield f"{prefix}." if prefix else "", coded.owner(layer), coded
