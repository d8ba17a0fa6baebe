"""Learning rate factors for cores, from their fan-in (maximal update parametrisation)."""

from __future__ import annotations

from torch import nn

from mpochain.nn import CompressedLayer, RowEmbedding

__all__ = ["learning_rate_scales"]


def learning_rate_scales(module: nn.Module) -> dict[str, float]:
    """Learning rate factors for which an Adam step of each core changes the output as much as in a dense layer.

    The size of Adam's steps does not depend on the gradient, so the change of an output grows with the number of summed
    entries, and the learning rate of a dense layer should scale as ``1 / in_features`` (maximal update
    parametrisation). In a sweep from the right, the core of site ``k`` sums over ``i_k`` and its right bond ``r_k``, so
    relative to the dense layer its factor is ``in_features / (i_k r_k)``. Source: arXiv 2406.06248, there for products
    of two structured factors.

    A row of an :class:`mpochain.MPOEmbedding` sums only over the right bond, and ``nn.Embedding`` sums nothing, so the
    factor is ``1 / r_k``, also for a head tied to the embedding.

    Other embeddings and :class:`mpochain.InterpolativeLinear` get no factors. The coefficients of the latter sum over
    the rank, but come from trained weights: with a factor of ``in_features / rank`` a model healed hardly better at a
    low rate and worse at a high one (docs/decisions/0026).

    Args:
        module: a compressed layer, or a model that contains some.

    Returns:
        The factor of each core, by parameter name; a shared core has its first name. Other parameters are not listed.

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
    # Outer layers come first, and their factors win: the cores of an embedding are not applied to inputs.
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
