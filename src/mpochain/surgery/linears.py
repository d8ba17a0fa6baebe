"""Conversion of compressed layers to layers made of ``torch.nn.Linear``, which quantisers and adapters find."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mpochain.errors import ArgumentError, MPOError
from mpochain.nn.balanced import balanced_linears
from mpochain.surgery.finding import compressed_layers, require_module
from mpochain.surgery.replacement import replace_layers
from mpochain.surgery.wrappers import require_replaceable_in

__all__ = ["as_linears"]


@torch.inference_mode(False)  # parameters made in inference mode could never be trained
def as_linears(
    model: nn.Module, *, ignore: Iterable[str] = (), dequantize: bool = False, balanced: bool = False
) -> dict[str, nn.Module]:
    """Replace compressed linear layers of a model by layers made of ``torch.nn.Linear``, with the same function.

    Tools that quantise or adapt a model replace its ``torch.nn.Linear``. Chains of cores hold none, so such tools pass
    them over; afterwards every core is the weight of one. The new layers have as many parameters as the old ones and
    are equal up to rounding, but slower, as contractions are no longer planned. Layers of low rank are made of
    ``torch.nn.Linear`` already and stay as they are; so do embeddings, whose rows are looked up. A head tied to a
    compressed embedding gets its own copy of the cores. Frozen cores stay frozen.

    Args:
        model: changed in place, or not at all if a layer is refused.
        ignore: names of layers to leave as they are.
        dequantize: whether layers in codes are dequantised first, which multiplies their size; otherwise they are
            refused.
        balanced: whether layers of low rank become two factors that share the singular values evenly. Tools that round
            to nearest then lose a third as much as with the factors of an interpolation (docs/decisions/0073), for
            ``rank^2`` more numbers in each such layer.

    Returns:
        The new layers by name; :func:`mpochain.save` writes them, and :func:`mpochain.to_dense` makes them dense.

    Raises:
        ArgumentError: a layer cannot be made of ``torch.nn.Linear``, has hooks or the like, or a name in ``ignore`` is
            no compressed layer.

    Example:
        >>> from mpochain.nn import InterpolativeLinear, MPOLinear
        >>> model = nn.Sequential(MPOLinear(64, 48, max_bond=4), nn.ReLU(), InterpolativeLinear(48, 64, 8))
        >>> list(as_linears(model))
        ['0']
        >>> sum(isinstance(module, nn.Linear) for module in model.modules())
        4
    """
    require_module(model)
    layers = compressed_layers(model)
    left = {ignore} if isinstance(ignore, str) else set(ignore)
    if left - layers.keys():
        raise ArgumentError(
            f"ignore: {min(left - layers.keys())!r} is no compressed layer of the model; its layers are "
            f"{', '.join(layers) or 'all dense'}"
        )
    if "" in layers:
        raise ArgumentError(
            f"the model is itself {type(model).__name__}, which cannot be replaced in place; call its as_linears(), or "
            "put it into nn.Sequential"
        )
    chosen = {name: layer for name, layer in layers.items() if name not in left and not layer.looks_up}
    require_replaceable_in(model, set(chosen.values()))
    changed: dict[str, nn.Module] = {}
    for name, layer in chosen.items():
        try:
            new = (balanced_linears(layer) if balanced else None) or layer.as_linears(dequantize=dequantize)
        except MPOError as error:
            raise ArgumentError(f"{name}: {error}, or leave it as it is with ignore=[{name!r}]") from error
        if new is not layer:
            changed[name] = new
    replace_layers(model, {layers[name]: new for name, new in changed.items()})
    return changed
