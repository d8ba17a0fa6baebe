"""Compressed linear layer of any form whose tensors are held in 8-, 4-, 3- or 2-bit codes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.errors import ArgumentError, DTypeError
from mpochain.nn.former_names import former_names_in
from mpochain.nn.kinds import LAYERS
from mpochain.nn.layer import CompressedLayer
from mpochain.nn.quantized.coded import CodedTensor
from mpochain.nn.quantized.layer import QuantizedLayer
from mpochain.nn.quantized.tensors import QuantizedTensors, codable
from mpochain.quantization import Quantized, Scheme, nearest
from mpochain.wording import kind_of

__all__ = ["QuantizedParts"]


class QuantizedParts(QuantizedTensors):
    """A compressed linear layer whose tensors are held in codes: ``(..., in_features) -> (..., out_features)``.

    Each call dequantises the tensors, which are much smaller than the dense matrix, and runs the layer; with
    ``cache=True`` they are dequantised once, and the layer runs with its own cache. Scales are trained, as are the
    tensors that are not in codes. See :class:`mpochain.nn.QuantizedLayer`.

    Build it with :meth:`of`.

    Example:
        >>> import torch
        >>> from mpochain import InterpolativeLinear
        >>> layer = InterpolativeLinear(64, 48, rank=12)
        >>> quantised = QuantizedParts.of(layer, {"rows.weight": Scheme(4), "coefficients.weight": Scheme(4)})
        >>> layer.numbers().bytes, quantised.numbers().bytes
        (4992, 1008)
        >>> quantised(torch.zeros(2, 5, 64)).shape
        torch.Size([2, 5, 48])
    """

    kind = "quantized_parts"
    _autotune: bool | None = None

    @staticmethod
    def of(
        layer: CompressedLayer, tensors: Scheme | Mapping[str, Scheme | Quantized], name: str | None = None
    ) -> QuantizedTensors:
        """A layer with some or all tensors of another layer in codes, and copies of its other tensors.

        Args:
            layer: any layer of :data:`mpochain.nn.LAYERS` that is not quantised itself; not changed.
            tensors: scheme of each tensor, by its name in the layer's state dict, or its codes; tensors that are not
                named stay as they are. One scheme alone is for all tensors with several rows that it makes smaller. A
                tensor of more than two axes is quantised as a matrix whose rows are the first half of its axes.
            name: name of the layer in errors.

        Returns:
            A :class:`QuantizedParts`; for an embedding, the :class:`mpochain.nn.RowEmbedding` of this form.

        Raises:
            DTypeError: no compressed layer, or a quantised one.
            ArgumentError: no tensor, or a name that is no floating-point parameter with at least two axes.
            NonFiniteError: NaN or infinite entries.
            ShapeError: codes of another shape.
        """
        label = name or type(layer).__name__
        if not isinstance(layer, CompressedLayer) or isinstance(layer, QuantizedLayer):
            raise DTypeError(f"{label}: expected a compressed layer that is not quantised, got {kind_of(layer)}")
        if type(layer) is not LAYERS.get(layer.kind):
            raise DTypeError(f"{label} is {kind_of(layer)}, which is not in mpochain.nn.LAYERS; add it there first")
        choices, present = codable(layer), former_names_in(layer)
        if isinstance(tensors, Scheme):
            scheme = tensors
            tensors = {path: scheme for path, value in choices.items() if _is_smaller(value, scheme)}
            if not tensors:
                raise ArgumentError(f"{label} has no tensor that {scheme} make smaller; leave it as it is")
        tensors = {present.get(path, path): value for path, value in tensors.items()}
        if not tensors or tensors.keys() - choices.keys():
            raise ArgumentError(
                f"{label}: {', '.join(map(repr, tensors)) or 'no tensor'} cannot be held in codes; name some of "
                f"{', '.join(choices)}"
            )
        schemes = {path: value if isinstance(value, Scheme) else value.scheme for path, value in tensors.items()}
        kind: Any = LAYERS[QuantizedParts.kind + ("_embedding" if layer.looks_up else "")]
        parts: QuantizedTensors = kind._of(layer, schemes)
        codes = {
            path: _rounded(choices[path], value, f"{path} of {label}") if isinstance(value, Scheme) else value
            for path, value in tensors.items()
        }
        parts.assign(codes)
        for path in tensors:
            parts.scales(path).requires_grad_(choices[path].requires_grad)
        return parts.replacing(layer).train(layer.training)

    def _begin(self, layer: CompressedLayer) -> None:
        CompressedLayer.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def compact(self, x: Tensor) -> Tensor:
        """See :meth:`mpochain.nn.CompressedLayer.compact`."""
        return self.layer.compact(x)

    def _dequantised(self) -> nn.Module:
        with torch.inference_mode(False), torch.no_grad():
            return self._filled(copy.deepcopy(self._skeleton[0])).as_linears()

    def _set_execution(self, cache: bool, autotune: bool | None) -> None:
        self._autotune = autotune
        self._skeleton[0].set_execution(autotune=autotune)
        super()._set_execution(cache, autotune)

    def _kept_from(self) -> Sequence[Tensor]:
        return list(self.parameters())  # the bias too, as the layer that is kept holds it

    def _to_keep(self) -> CompressedLayer:
        """The layer with dequantised tensors, which keeps what it needs itself."""
        layer = self._filled(copy.deepcopy(self._skeleton[0]))
        return layer.set_execution(cache=True, autotune=self._autotune)

    def _run_kept(self, x: Tensor, kept: CompressedLayer) -> Tensor:
        y: Tensor = kept(x)
        return y

    def extra_repr(self) -> str:
        """Features, form and bias, for ``print(layer)``."""
        return f"{self.in_features} -> {self.out_features}, {self.form()}, bias={self.bias is not None}"


def _is_smaller(value: Tensor, scheme: Scheme) -> bool:
    tensor = CodedTensor("tensor", tuple(value.shape), scheme)
    return tensor.rows > 1 and scheme.bytes(tensor.rows, tensor.columns) < value.numel() * value.element_size()


def _rounded(value: Tensor, scheme: Scheme, name: str) -> Quantized:
    tensor = CodedTensor("tensor", tuple(value.shape), scheme)
    return nearest(value.detach().reshape(tensor.rows, tensor.columns), scheme, name=name)
