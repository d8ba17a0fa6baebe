"""Layers of a model that vLLM fuses into one, with their tensors as they arrive from the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.errors import CheckpointError, MPOError
from mpochain.nn import CompressedLayer
from mpochain.nn.kinds import layer_of

__all__ = ["MARK", "Shards", "layer_for"]

# End of the names under which vLLM passes on tensors of compressed layers. It transposes some tensors by their names,
# such as those that end with ".weight" in GPT-2, and so leaves these as they are.
MARK = ".mpochain"
# Numbers of the shards in fused layers that vLLM names by letters.
_LETTERS = {"q": 0, "k": 1, "v": 2}
_INDICES = (torch.int32, torch.int64)


def layer_for(
    entry: Any, name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, *, bias: bool = False
) -> nn.Module:
    """A layer without values: compressed by its entry, or a ``torch.nn.Linear`` where there is none.

    Args:
        entry: JSON-ready entry of a compressed layer; None for a dense one.
        name: name of the layer in errors.
        shape: ``(out_features, in_features)``.
        dtype: element type.
        device: device of the tensors.
        bias: whether a dense layer has a bias.

    Raises:
        ArgumentError: the entry is damaged, or describes a layer of another shape.

    Example:
        >>> layer_for(None, "up", (2, 3), torch.float32, torch.device("cpu"))
        Linear(in_features=3, out_features=2, bias=False)
    """
    if entry is None:
        layer: nn.Module = nn.Linear(shape[1], shape[0], bias=bias, device="meta")
    else:
        layer = layer_of(entry, shape, f"layers.{name}")
    return layer.to(dtype).to_empty(device=device).requires_grad_(False).eval()


class Shards:
    """Layers that vLLM runs as one, in the order of their outputs, and which of their tensors were loaded.

    Args:
        layers: the layers by their names in the model.
        shared: layers of the whole model that hold tensors to which others are tied, by name; these are added to them.
        tied: names of tied tensors, and the names under which they are stored.

    Example:
        >>> layer = layer_for(None, "up", (2, 3), torch.float32, torch.device("cpu"))
        >>> shards = Shards({"up": layer}, {}, {})
        >>> list(shards.load([("weight", torch.ones(2, 3))]))
        ['weight']
        >>> shards.finish()
    """

    def __init__(self, layers: Mapping[str, nn.Module], shared: dict[str, nn.Module], tied: Mapping[str, str]) -> None:
        self.names: Sequence[str] = tuple(layers)
        self.layers: Sequence[nn.Module] = tuple(layers.values())
        self._shared, self._tied = shared, tied
        self._missing = [set(layer.state_dict()) for layer in self.layers]
        # Only those, as they would keep the memory of all layers that vLLM runs in another form.
        firsts = tuple(tied.values())
        shared.update(
            {name: layer for name, layer in layers.items() if any(first.startswith(f"{name}.") for first in firsts)}
        )

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
        """Load tensors, and yield their names; vLLM calls it in place of its own ``load_weights`` of a layer.

        Args:
            tensors: tensors with their names within the layer; vLLM attaches the shard as ``shard_id``.

        Raises:
            CheckpointError: a tensor that no layer here has, of another shape or type, or for the second time.
        """
        for full, value in tensors:
            self._load(full, value)
            yield full

    def _load(self, full: str, value: Tensor) -> None:
        shard = getattr(value, "shard_id", None)
        number = 0 if shard is None and len(self.layers) == 1 else _LETTERS.get(str(shard), shard)
        if not isinstance(number, int) or not 0 <= number < len(self.layers):
            raise CheckpointError(
                f"{full} of {', '.join(self.names)} arrived for the part {shard!r}; expected one of "
                f"{len(self.layers)} layers of the model"
            )
        layer, prefix = self.layers[number], self.names[number]
        name = full.removesuffix(MARK)
        compressed = isinstance(layer, CompressedLayer)
        if compressed is (name == full):
            raise CheckpointError(
                f"{prefix}.{name} was not passed on as it is in the file by this version of vLLM; install another one"
            )
        if isinstance(layer, CompressedLayer):
            name = layer.former_names().get(name, name)
        held = layer.state_dict().get(name)
        if held is None or name not in self._missing[number]:
            problem = "is no tensor of this layer" if held is None else "is in the files twice"
            raise CheckpointError(f"{prefix}.{name} {problem}; the folder is damaged")
        if value.shape != held.shape or not _same_kind(value.dtype, held.dtype):
            raise CheckpointError(
                f"{prefix}.{name} has shape {tuple(value.shape)} and type {value.dtype}, expected "
                f"{tuple(held.shape)} and {held.dtype}"
            )
        held.copy_(value)
        self._missing[number].remove(name)

    def finish(self) -> None:
        """Take tied tensors from the layers that hold them, and check that all tensors are there and valid.

        Raises:
            CheckpointError: a tensor was not in the files, or holds values that a layer cannot compute with.
        """
        for layer, prefix, missing in zip(self.layers, self.names, self._missing, strict=True):
            for name in sorted(missing):
                owner, _, attribute = name.rpartition(".")
                setattr(layer.get_submodule(owner), attribute, self._tied_tensor(f"{prefix}.{name}"))
            missing.clear()
            if isinstance(layer, CompressedLayer):
                try:
                    layer.require_valid(prefix)
                except MPOError as error:
                    raise CheckpointError(f"{error}; the folder is damaged") from error

    def _tied_tensor(self, name: str) -> Any:
        """The tensor to which one is tied."""
        first = self._tied.get(name)
        if first is None:
            raise CheckpointError(f"{name} is in no file of the folder, which is damaged")
        holder = next((prefix for prefix in self._shared if first.startswith(f"{prefix}.")), None)
        if holder is None:
            raise CheckpointError(f"{name} is tied to {first}, which is in no layer of this process; use one process")
        owner, _, attribute = first.removeprefix(f"{holder}.").rpartition(".")
        return getattr(self._shared[holder].get_submodule(owner), attribute)


def _same_kind(stored: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether a stored type can take the place of another: floats, indices, or the same."""
    if stored.is_floating_point and wanted.is_floating_point:
        return True
    return stored == wanted or (stored in _INDICES and wanted in _INDICES)
