"""Learning rates of cores by their fan-in."""

from __future__ import annotations

from torch import nn

from mpochain.nn import CompressedLayer, RowEmbedding

__all__ = ["learning_rate_scales"]


def learning_rate_scales(module: nn.Module) -> dict[str, float]:
    """Factors of the learning rate that let every core move its output as a dense layer would, under Adam.

    Adam's steps have one size whatever the gradient, so the change of an output grows with the number of entries that
    are summed, and the rate of a dense layer should fall as ``1 / in_features`` (maximal update parametrisation). The
    core of site ``k``, met from the right, sums over ``i_k`` and its right bond, so relative to the dense layer its
    factor is ``in_features / (i_k r_k)``. Source: arXiv 2406.06248, there for products of two structured factors.

    A row of an :class:`mpochain.MPOEmbedding` sums over the right bond alone, where ``nn.Embedding`` sums nothing, so
    the factor is ``1 / r_k``; for a head that is tied to it too.

    Parameters of other embeddings are not named, nor those of an :class:`mpochain.InterpolativeLinear`. Coefficients of
    the latter sum over the rank, but come from trained weights: with a factor of ``in_features / rank`` a model healed
    hardly better at a low rate and worse at a high one (docs/decisions/0026).

    Args:
        module: a layer, or a model that holds some.

    Returns:
        A factor for the name of each core, shared ones by their first; other parameters are not named.

    Example:
        >>> from mpochain.nn import MPOLinear
        >>> layer = MPOLinear(128, 128, out_dims=(8, 16), in_dims=(8, 16), max_bond=4)
        >>> learning_rate_scales(layer)
        {'core_0_0': 4.0, 'core_0_1': 8.0}
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, CompressedLayer)}
    scales: dict[str, float] = {}
    named: dict[int, str] = {}
    looked_up: set[int] = set()
    # Outer layers come first and know how their cores are used: an embedding's chain is not applied to its inputs.
    for prefix, layer in layers.items():
        parameters = dict(layer.named_parameters(remove_duplicate=False))
        for name, scale in layer.learning_rate_scales().items():
            key = id(parameters[name])
            first = named.setdefault(key, f"{prefix}.{name}" if prefix else name)
            if isinstance(layer, RowEmbedding):
                looked_up.add(key)
                scales[first] = scale
            elif key not in looked_up:
                scales[first] = scale
    return scales
