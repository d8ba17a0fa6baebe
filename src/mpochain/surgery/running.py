"""Execution settings of the compressed layers of a model: caching between calls, and autotuning."""

from __future__ import annotations

from torch import nn

from mpochain.errors import ArgumentError
from mpochain.nn.cache_argument import Memory, requested_cache
from mpochain.surgery.finding import compressed_layers

__all__ = ["set_execution"]


def set_execution(
    module: nn.Module, *, cache: bool = False, autotune: bool | None = None, memory: Memory | None = None
) -> int:
    """Set how all compressed layers of a model run.

    Args:
        module: a compressed layer, or any module that contains some.
        cache: False stores only the cores. True caches folded cores, up to the dense matrix, between calls without
            gradients, and recomputes them when a core changes (an optimiser step, ``load_state_dict``, an in-place
            edit, ``.to``). Edits that torch does not track are not noticed: through ``tensor.data``,
            ``tensor.detach().numpy()`` or from another process. Call this function again after such an edit.
        autotune: how plans of chains are found for a batch size (rounded up to a power of two), element type, device
            and number of threads. By default the first ten calls without gradients alternate among the plans that are
            predicted to be the best and are timed, if they take more than some tens of microseconds; then the layer
            stays with the fastest. All compute the same product, but round differently. False keeps to the prediction,
            so that equal calls have equal results; so do ``torch.use_deterministic_algorithms`` and processes of
            ``torch.distributed``, for layers that have not settled. True measures the most promising plans at the first
            call, with or without gradients, which then takes some tenths of a second;
            :meth:`mpochain.MPOLinear.precompile` measures ahead. The fastest plan is stored in the user's cache folder
            for later processes.
        memory: deprecated; ``"fast"`` means ``cache=True``, ``"compact"`` means ``cache=False``.

    Returns:
        The number of compressed layers.

    Raises:
        ArgumentError: an unknown ``memory``, or a module without compressed layers.

    Example:
        >>> from mpochain.nn import MPOLinear
        >>> layer = MPOLinear(16, 16, max_bond=4)
        >>> set_execution(nn.Sequential(layer, nn.ReLU()), cache=True)
        1
    """
    cache = requested_cache(cache, memory)
    layers = compressed_layers(module).values()
    if not layers:
        raise ArgumentError(
            f"{type(module).__name__} contains no compressed layer; compress it first, or pass another module"
        )
    for layer in layers:
        layer.set_execution(cache=cache, autotune=autotune)
    return len(layers)
