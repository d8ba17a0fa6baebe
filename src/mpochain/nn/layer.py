"""Base class of compressed layers."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import ArgumentError, MPOError, ShapeError
from mpochain.execution.autocast import without_autocast
from mpochain.execution.kept import Kept
from mpochain.nn.dense import linear_of
from mpochain.nn.entry import LayerEntry
from mpochain.nn.index import Index

__all__ = ["LAYERS", "CompressedLayer", "Memory", "Numbers", "layer_of", "requested_cache"]

# Spellings of ``cache=False`` and ``cache=True`` before release 0.2.
Memory = Literal["compact", "fast"]


@dataclass(frozen=True)
class Numbers:
    """Size of what stands for the weight of a layer, and the work of one input row.

    Attributes:
        parameters: numbers that stand for the weight; index buffers and the bias are not among them.
        bytes: of all tensors that stand for the weight, index buffers and other integers included, the bias not.
        macs: multiply-adds of one input row.
    """

    parameters: int
    bytes: int
    macs: int


class CompressedLayer(nn.Module, ABC):
    """A layer in place of a dense one whose weight ``(out_features, in_features)`` is held in another form.

    A subclass defines :attr:`kind`, :attr:`Entry`, :attr:`weight`, :meth:`compact`, :meth:`macs`, :meth:`entry` and
    :meth:`from_entry`. It runs as a linear layer, ``(..., in_features)`` to ``(..., out_features)``; embeddings are
    :class:`mpochain.nn.RowEmbedding`. A layer that checkpoints shall hold is added to :data:`mpochain.nn.LAYERS`.

    Attributes:
        kind: name of the layer in checkpoints.
        Entry: its sizes as plain data.
        in_features: size of each input row.
        out_features: size of each output row.
        bias: ``(out_features,)``, or None.
    """

    kind: ClassVar[str]
    Entry: ClassVar[type[LayerEntry]]
    in_features: int
    out_features: int
    bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self._kept: Kept | None = None

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""

    @abstractmethod
    def compact(self, x: Tensor) -> Tensor:
        """The layer's output for ``x``, bias included, without the dense matrix."""

    @abstractmethod
    def macs(self) -> int:
        """Multiply-adds of one input row."""

    @abstractmethod
    def entry(self) -> LayerEntry:
        """The layer's sizes as plain data."""

    @classmethod
    @abstractmethod
    def from_entry(cls, entry: Any) -> Self:
        """The layer of an :attr:`Entry` on the meta device: nothing is allocated, whatever the entry says.

        Raises:
            ArgumentError: sizes that contradict each other.
        """

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the weight."""
        return self.out_features, self.in_features

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the weight; the weight is not built."""
        return self._stored().dtype

    @property
    def device(self) -> torch.device:
        """Where the weight is; the weight is not built."""
        return self._stored().device

    @property
    def cache(self) -> bool:
        """Whether a matrix is kept between calls without gradients, see :func:`mpochain.set_execution`."""
        return self._kept is not None

    def indices(self) -> dict[str, Index]:
        """Index buffers by their names in the state dict, with their valid values."""
        return {}

    def numbers(self) -> Numbers:
        """Parameters, bytes and multiply-adds of what stands for the weight.

        A tensor of any type counts, such as the integer codes of a quantised core; index buffers count as bytes alone.
        """
        indices = self.indices()
        stored = {name: tensor for name, tensor in self.state_dict().items() if name.rpartition(".")[2] != "bias"}
        return Numbers(
            parameters=sum(tensor.numel() for name, tensor in stored.items() if name not in indices),
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in stored.values()),
            macs=self.macs(),
        )

    def form(self) -> str:
        """The layer in a few words, for tables."""
        return self.kind

    def to_dense(self) -> nn.Module:
        """The dense layer with the same function, sharing no memory."""
        return self.to_linear()

    def to_linear(self) -> nn.Linear:
        """The dense linear layer with the same function, sharing no memory."""
        # In the layer's own type, also where autocast is on.
        with torch.no_grad(), without_autocast(self._stored()):
            return linear_of(self.weight, self.bias, self.training)

    def learning_rate_scales(self) -> dict[str, float]:
        """Factors of the learning rate by parameter name; see :func:`mpochain.surgery.learning_rate_scales`."""
        return {}

    def set_execution(self, *, cache: bool = False, autotune: bool = False, memory: Memory | None = None) -> Self:
        """Choose how the layer is run, see :func:`mpochain.set_execution`, and return it.

        Args:
            cache: whether a matrix is kept between calls without gradients.
            autotune: whether plans are measured; of layers with plans alone.
            memory: deprecated; ``"fast"`` is ``cache=True``.

        Raises:
            ArgumentError: an unknown ``memory``.
        """
        self._set_execution(requested_cache(cache, memory), autotune)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``.

        Raises:
            ShapeError: the last axis of ``x`` is not ``in_features``.
        """
        self._require_input(x)
        if self._kept is not None and not self._records_gradients(x):
            kept = self._kept.get(x, self._kept_from(), self._to_keep)
            if kept is not None:
                return self._run_kept(x, kept)
        return self.compact(x)

    def extra_repr(self) -> str:
        """Features and bias, for ``print(layer)``."""
        return f"{self.in_features} -> {self.out_features}, bias={self.bias is not None}"

    def _set_execution(self, cache: bool, autotune: bool) -> None:  # noqa: ARG002  # of layers with plans
        self._kept = Kept() if cache else None

    def _require_input(self, x: Tensor) -> None:
        if not x.ndim or x.shape[-1] != self.in_features:
            raise ShapeError(
                f"{type(self).__name__} got x of shape {tuple(x.shape)}; expected (..., {self.in_features})"
            )

    def _records_gradients(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (
            x.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        )

    def _kept_from(self) -> Sequence[Tensor]:
        """The parameters that the kept matrix depends on."""
        bias = self.bias
        return [parameter for parameter in self.parameters() if parameter is not bias]

    def _to_keep(self) -> Tensor:
        """The matrix that is kept between calls."""
        return self.weight

    def _run_kept(self, x: Tensor, kept: Tensor) -> Tensor:
        """The layer's output for ``x``, from the matrix of :meth:`_to_keep`."""
        return F.linear(x, kept, self.bias)

    def _stored(self) -> Tensor:
        """A tensor with the element type and device of the weight."""
        return next(self.parameters())


# Every layer that a checkpoint may hold, by its kind. The table is written in ``mpochain/nn/__init__.py``; a layer from
# outside of this library is added by one line, ``mpochain.nn.LAYERS[MyLayer.kind] = MyLayer``.
LAYERS: dict[str, type[CompressedLayer]] = {}


def layer_of(data: Any, shape: tuple[int, int] | None, name: str) -> CompressedLayer:
    """The layer of an entry on the meta device: nothing is allocated, whatever the entry says.

    Args:
        data: an entry as JSON-ready data, from a file that nobody has checked.
        shape: ``(out_features, in_features)`` that it must have; None for any.
        name: of the layer, for errors.

    Raises:
        ArgumentError: data that is no entry of a known layer, or of a layer of another shape, naming the field.

    Example:
        >>> data = {"kind": "interpolative", "out_features": 3, "in_features": 4, "rank": 2, "bias": False}
        >>> layer_of(data, (3, 4), "up").rows.device
        device(type='meta')
    """
    kind = data.get("kind") if isinstance(data, dict) else None
    layer = LAYERS.get(kind) if isinstance(kind, str) else None
    if layer is None:
        raise ArgumentError(
            f"{name}: kind is {kind!r}, no layer of this process; expected one of {', '.join(sorted(LAYERS))}. A layer "
            "from outside of mpochain must be in mpochain.nn.LAYERS before its checkpoint is read"
        )
    entry = layer.Entry.read(data, name)
    if shape is not None and entry.shape != shape:
        raise ArgumentError(
            f"{name} is a {entry.shape[0]}x{entry.shape[1]} matrix, but the layer that it replaces is "
            f"{shape[0]}x{shape[1]}"
        )
    try:
        return layer.from_entry(entry)
    except MPOError as error:
        raise ArgumentError(f"{name}: {error}") from error
    except RuntimeError as error:  # torch has no tensors of sizes beyond any memory, on no device
        raise ArgumentError(f"{name}: {error}") from error


def requested_cache(cache: bool, memory: Memory | None) -> bool:
    """What ``cache=`` asks for, or the deprecated ``memory=`` in its place.

    Raises:
        ArgumentError: an unknown ``memory``.

    Example:
        >>> requested_cache(True, None)
        True
    """
    if memory is None:
        return bool(cache)
    if memory not in ("compact", "fast"):
        raise ArgumentError(f"memory must be 'compact' or 'fast', got {memory!r}; use cache=False or cache=True")
    new = "cache=True" if memory == "fast" else "cache=False"
    # Past this function and the method that calls it, to the user's own line.
    warnings.warn(f"memory={memory!r} is deprecated; use {new}", DeprecationWarning, stacklevel=3)
    return memory == "fast"
