"""Table of the layers that checkpoints may hold, by kind, and layers built from entries."""

from __future__ import annotations

from typing import Any

from mpochain.errors import ArgumentError, MPOError
from mpochain.nn.layer import CompressedLayer
from mpochain.wording import article

__all__ = ["LAYERS", "layer_of"]

# All layers that a checkpoint may hold, by kind. ``mpochain/nn/__init__.py`` fills the table; to add a layer of your
# own, write ``mpochain.nn.LAYERS[MyLayer.kind] = MyLayer``.
LAYERS: dict[str, type[CompressedLayer]] = {}


def layer_of(data: Any, shape: tuple[int, int] | None, name: str) -> CompressedLayer:
    """Build the layer that an entry describes, on the meta device, so that no size allocates memory.

    Args:
        data: an entry as JSON-ready data, from an unchecked file.
        shape: required ``(out_features, in_features)``; None for any.
        name: name of the layer in errors.

    Raises:
        ArgumentError: the data is no entry of a known layer, or the layer has another shape. The message names the
            field.

    Example:
        >>> data = {"kind": "interpolative", "out_features": 3, "in_features": 4, "rank": 2, "bias": False}
        >>> layer_of(data, (3, 4), "up").rows.weight.device
        device(type='meta')
    """
    kind = data.get("kind") if isinstance(data, dict) else None
    layer = LAYERS.get(kind) if isinstance(kind, str) else None
    if layer is None:
        raise ArgumentError(
            f"{name}: kind {kind!r} is no known layer; expected one of {', '.join(sorted(LAYERS))}. Add a layer of "
            "your own to mpochain.nn.LAYERS before you load its checkpoint"
        )
    entry = layer.Entry.read(data, name)
    if shape is not None and entry.shape != shape:
        raise ArgumentError(
            f"{name} is {article(f'{entry.shape[0]}x{entry.shape[1]} matrix')}, but the layer that it replaces is "
            f"{shape[0]}x{shape[1]}"
        )
    try:
        return layer.from_entry(entry)
    except MPOError as error:
        raise ArgumentError(f"{name}: {error}") from error
    except RuntimeError as error:  # torch refuses tensors larger than any memory, on the meta device too
        raise ArgumentError(f"{name}: {error}") from error
