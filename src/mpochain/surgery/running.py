"""Execution of the compressed layers of a model: what is kept between calls, and whether plans are measured."""

from __future__ import annotations

from torch import nn

from mpochain.errors import ArgumentError
from mpochain.nn.layer import Memory, requested_cache
from mpochain.surgery.finding import compressed_layers

__all__ = ["set_execution"]


def set_execution(
    module: nn.Module, *, cache: bool = False, autotune: bool = False, memory: Memory | None = None
) -> int:
    """Choose how every compressed layer of a model is run.

    Args:
        module: a compressed layer, or any module that holds some.
        cache: False keeps nothing but the cores. True keeps folded cores, up to the dense matrix, between calls
            without gradients; they are computed again when a core changes (an optimiser step, ``load_state_dict``, an
            edit in place, ``.to``). Only edits that torch does not count go unseen, through ``tensor.data``,
            ``tensor.detach().numpy()`` or another process: call this again after one.
        autotune: measure the most promising plans when a layer first meets a batch size (rounded up to a power of
            two), element type, device and number of threads, instead of predicting the fastest; the first call then
            takes some tenths of a second, :meth:`mpochain.MPOLinear.precompile` does it ahead. The fastest plan is
            kept in the user's cache for the next process.
        memory: deprecated; ``"fast"`` is ``cache=True``, ``"compact"`` is ``cache=False``.

    Returns:
        The number of layers it was applied to.

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
            f"{type(module).__name__} holds no compressed layer; compress it first, or pass the right module"
        )
    for layer in layers:
        layer.set_execution(cache=cache, autotune=autotune)
    return len(layers)
