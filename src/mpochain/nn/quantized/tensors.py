"""Base class of layers of any form whose tensors are held in codes, and their entry in checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, field_validator
from torch import Tensor, nn

from mpochain.errors import ArgumentError
from mpochain.nn.entry import LayerEntry
from mpochain.nn.former_names import former_names_in
from mpochain.nn.index import Index
from mpochain.nn.kinds import LAYERS
from mpochain.nn.layer import CompressedLayer
from mpochain.nn.quantized.coded import CodedTensor
from mpochain.nn.quantized.layer import QuantizedLayer, SchemeEntry
from mpochain.nn.quantized.skeleton import filled, holder_of, tensors_of
from mpochain.quantization import Quantized, Scheme, nearest
from mpochain.wording import kind_of

__all__ = ["PartsEntry", "QuantizedTensors", "codable"]

# More tensors than any layer has, but few enough to build quickly.
_MOST_TENSORS = 64
# Name of the module that holds all tensors.
_HELD = "tensors"


class TensorEntry(SchemeEntry):
    """A tensor that is held in codes, within an entry."""

    name: Annotated[str, Field(min_length=1, max_length=200)]


class PartsEntry(LayerEntry):
    """Entry of a layer whose tensors are held in codes: that of the layer, and the scheme of each such tensor."""

    kind: Literal["quantized_parts", "quantized_parts_embedding"]
    layer: SerializeAsAny[LayerEntry]
    tensors: Annotated[list[TensorEntry], Field(min_length=1, max_length=_MOST_TENSORS)]

    @field_validator("layer", mode="before")
    @classmethod
    def _of_a_layer(cls, data: Any) -> LayerEntry:
        if isinstance(data, LayerEntry):
            return data
        layer = LAYERS.get(str(data.get("kind"))) if isinstance(data, dict) else None
        if layer is None or issubclass(layer, QuantizedLayer):
            raise ValueError("this must be the entry of a layer that is not quantised itself")
        return layer.Entry.model_validate(data)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the weight."""
        return self.layer.shape


class QuantizedTensors(QuantizedLayer):
    """A layer of any form that holds the tensors of another one, in codes or as they are.

    A subclass says how it runs, and defines :meth:`_begin`.
    """

    Entry = PartsEntry
    tensors: nn.Module
    _bias_path: str | None
    # The layer without values, on the meta device; in a tuple, since its tensors are none of this layer's.
    _skeleton: tuple[CompressedLayer]
    _in_codes: dict[str, CodedTensor]
    _coded: tuple[CodedTensor, ...]

    def _begin(self, layer: CompressedLayer) -> None:
        """Initialise this layer with the sizes of another one."""
        raise NotImplementedError

    @classmethod
    def _of(cls, layer: CompressedLayer, schemes: Mapping[str, Scheme]) -> Self:
        """A layer with copies of the tensors of another one; those with a scheme are in codes without values."""
        values = tensors_of(layer)
        parts = cls.__new__(cls)
        parts._begin(layer)
        parts._register_prototype(layer.device, layer.dtype)
        parts._in_codes = {
            path: CodedTensor(path, tuple(values[path].shape), scheme) for path, scheme in schemes.items()
        }
        parts._coded = tuple(
            CodedTensor(f"{_HELD}.{path}", tensor.shape, tensor.scheme) for path, tensor in parts._in_codes.items()
        )
        parts.tensors = holder_of(layer, parts._in_codes)
        bias = layer.bias
        parts._bias_path = next((path for path, value in values.items() if bias is not None and value is bias), None)
        parts._skeleton = (type(layer).from_entry(layer.entry()),)
        return parts

    @property
    def coded(self) -> tuple[CodedTensor, ...]:
        """See :attr:`QuantizedLayer.coded`."""
        return self._coded

    @property
    def layer(self) -> CompressedLayer:
        """The layer with dequantised tensors, differentiable with respect to the scales; built at every access."""
        return self._filled(self._skeleton[0])

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]  # read only: it is one of the layer's tensors
        """The bias of the layer; None if it has none."""
        bias: Tensor | None = None if self._bias_path is None else self._held(self._bias_path)
        return bias

    def codes(self) -> dict[str, Quantized]:
        """Copies of the tensors in codes, by their names in the layer."""
        return {path: tensor.quantized(self._owner(path)) for path, tensor in self._in_codes.items()}

    def scales(self, path: str) -> nn.Parameter:
        """The scales of a tensor in codes, by its name in the layer."""
        scales: nn.Parameter = getattr(self._owner(path), f"{self._in_codes[path].name}_scale")
        return scales

    def assign(self, codes: Mapping[str, Quantized]) -> None:
        """Copy codes, scales and zero points of some tensors, by their names in the layer, into this layer.

        Raises:
            ShapeError: codes of another shape.
            ArgumentError: codes in another scheme.
        """
        for path, quantized in codes.items():
            self._in_codes[path].assign(self._owner(path), quantized)

    def indices(self) -> dict[str, Index]:
        """See :meth:`mpochain.nn.CompressedLayer.indices`."""
        return {
            f"{_HELD}.{path}": Index(self._held(path), index.size, index.permutation)
            for path, index in self._skeleton[0].indices().items()
        }

    def former_names(self) -> dict[str, str]:
        """See :meth:`mpochain.nn.CompressedLayer.former_names`; those of the layer, with the endings of codes."""
        names: dict[str, str] = {}
        for former, path in former_names_in(self._skeleton[0]).items():
            tensor = self._in_codes.get(path)
            stored = [path] if tensor is None else tensor.types
            names |= {f"{_HELD}.{former}{name.removeprefix(path)}": f"{_HELD}.{name}" for name in stored}
        return names

    def entry(self) -> PartsEntry:
        """The entry of the layer, and the scheme of each tensor that is held in codes."""
        tensors = [
            TensorEntry(**SchemeEntry.fields(tensor.scheme), name=path) for path, tensor in self._in_codes.items()
        ]
        kind: Any = self.kind
        return PartsEntry(kind=kind, layer=self._skeleton[0].entry(), tensors=tensors)

    @classmethod
    def from_entry(cls, entry: PartsEntry) -> Self:
        """See :meth:`mpochain.nn.CompressedLayer.from_entry`."""
        if entry.kind != cls.kind:
            raise ArgumentError(f"the kind of {cls.__name__} is {cls.kind!r}, got {entry.kind!r}")
        layer = LAYERS[entry.layer.kind].from_entry(entry.layer)
        if layer.looks_up is not cls.looks_up:
            raise ArgumentError(f"{cls.__name__} cannot hold {kind_of(layer)}")
        present = former_names_in(layer)
        schemes = {present.get(tensor.name, tensor.name): tensor.scheme() for tensor in entry.tensors}
        unknown = sorted(schemes.keys() - codable(layer).keys())
        if unknown or len(schemes) < len(entry.tensors):
            raise ArgumentError(
                f"the tensors in codes are {', '.join(tensor.name for tensor in entry.tensors)}; expected some of "
                f"{', '.join(codable(layer))}, each once"
            )
        return cls._of(layer, schemes)

    def form(self) -> str:
        """The form of the layer, and the schemes of its tensors."""
        schemes = dict.fromkeys(str(tensor.scheme) for tensor in self._coded)
        return f"{self._skeleton[0].form()}; {' and '.join(schemes)}"

    def macs(self) -> int:
        """Multiply-adds per input row, without those of dequantising."""
        return self._skeleton[0].macs()

    def reset_parameters(self) -> None:
        """Draw new tensors as the layer does, and round them to codes."""
        self._redraw()

    def _redraw(self, *options: float) -> None:
        if self.device.type == "meta":
            return
        fresh: Any = copy.deepcopy(self._skeleton[0]).to(torch.float32).to_empty(device=self.device)
        fresh.reset_parameters(*options)
        with torch.no_grad():
            for path, value in fresh.named_parameters():
                if path in self._in_codes:
                    tensor = self._in_codes[path]
                    self.assign({path: nearest(value.reshape(tensor.rows, tensor.columns), tensor.scheme)})
                else:
                    self._held(path).copy_(value)

    def _filled(self, skeleton: CompressedLayer) -> CompressedLayer:
        """A skeleton with the dequantised tensors."""
        return filled(skeleton, self.tensors, self._in_codes, self.dtype)

    def _owner(self, path: str) -> nn.Module:
        """The module that holds a tensor of the layer."""
        return self.tensors.get_submodule(path.rpartition(".")[0])

    def _held(self, path: str) -> Any:
        """A tensor of the layer that is not in codes."""
        return getattr(self._owner(path), path.rpartition(".")[2])


def codable(layer: CompressedLayer) -> dict[str, Tensor]:
    """The tensors of a layer that can be held in codes, by path: parameters with at least two axes.

    Example:
        >>> from mpochain import InterpolativeLinear
        >>> list(codable(InterpolativeLinear(6, 4, rank=2)))
        ['rows.weight', 'coefficients.weight']
    """
    return {
        path: value
        for path, value in layer.named_parameters(remove_duplicate=False)
        if value.ndim > 1 and value.numel() and value.is_floating_point()
    }
