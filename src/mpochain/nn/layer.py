"""Base class of compressed layers."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mpochain.distributed import is_managed
from mpochain.errors import ArgumentError, ShapeError
from mpochain.execution.autocast import without_autocast
from mpochain.execution.kept import Kept, buffers_of
from mpochain.execution.packed import packed, product
from mpochain.execution.tracing import is_proxy, is_recorded, is_traced, leaf_of_graph
from mpochain.nn.cache_argument import Memory, requested_cache
from mpochain.nn.conversion import Caching
from mpochain.nn.dense import linear_of
from mpochain.nn.dense_form import DenseForm, in_the_state_of
from mpochain.nn.entry import LayerEntry
from mpochain.nn.index import Index
from mpochain.nn.numbers import Numbers, stored_bytes

__all__ = ["CompressedLayer"]


class CompressedLayer(Caching, ABC):
    """Base class of layers that replace a dense layer and store its weight ``(out_features, in_features)`` compressed.

    A subclass defines :attr:`kind`, :attr:`Entry`, :attr:`weight`, :meth:`compact`, :meth:`macs`, :meth:`entry` and
    :meth:`from_entry`. It runs as a linear layer, ``(..., in_features)`` to ``(..., out_features)``; embeddings derive
    from :class:`mpochain.nn.RowEmbedding`. Checkpoints save the classes in :data:`mpochain.nn.LAYERS`.

    Attributes:
        kind: name of the layer in checkpoints.
        Entry: class of the plain data that describes the layer in checkpoints.
        looks_up: whether rows of the weight are looked up instead of multiplied, as in an embedding.
        in_features: size of each input row.
        out_features: size of each output row.
        bias: ``(out_features,)``, or None.
    """

    kind: ClassVar[str]
    Entry: ClassVar[type[LayerEntry]]
    looks_up: ClassVar[bool] = False
    in_features: int
    out_features: int
    bias: Tensor | None
    _dense_form: DenseForm | None = None  # of the dense layer that this one replaced

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""

    @abstractmethod
    def compact(self, x: Tensor) -> Tensor:
        """The layer's output for ``x``, bias included, without the dense matrix."""

    @abstractmethod
    def macs(self) -> int:
        """Multiply-adds per input row."""

    @abstractmethod
    def entry(self) -> LayerEntry:
        """The layer's sizes and options as plain data."""

    @classmethod
    @abstractmethod
    def from_entry(cls, entry: Any) -> Self:
        """Build the layer that an :attr:`Entry` describes, on the meta device, so that no size allocates memory.

        Raises:
            ArgumentError: sizes that contradict each other.
        """

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the weight."""
        return self.out_features, self.in_features

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the weight, without building it."""
        return self._stored().dtype

    @property
    def device(self) -> torch.device:
        """Device of the weight, without building it."""
        return self._stored().device

    @property
    def cache(self) -> bool:
        """True if calls without gradients share a cached matrix, see :func:`mpochain.set_execution`."""
        return self._kept is not None

    @property
    def memory(self) -> Memory:
        """Deprecated: ``"fast"`` if :attr:`cache`, else ``"compact"``."""
        warnings.warn("memory of a layer is deprecated; use cache", DeprecationWarning, stacklevel=2)
        return "fast" if self.cache else "compact"

    def __dir__(self) -> list[str]:
        # torch.jit and inspect read every name, and would be warned of the deprecated one.
        names: list[str] = super().__dir__()  # type: ignore[no-untyped-call]
        return [name for name in names if name != "memory"]

    def indices(self) -> dict[str, Index]:
        """The layer's index buffers, by their names in the state dict."""
        return {}

    def own_types(self) -> dict[str, torch.dtype]:
        """Tensors whose element type is not the layer's, such as codes and their scales, by name in the state dict."""
        return {}

    def former_names(self) -> dict[str, str]:
        """Present names of tensors in the state dict, by those of earlier versions, under which they still load."""
        return {}

    def can_reorder(self) -> bool:
        """Whether ``mpochain.nn.reordering`` can permute the layer's inputs and outputs."""
        return False

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """``(left, right)`` of shapes ``(out, r)`` and ``(r, in)`` whose product is the weight; None without such."""
        return None

    def require_valid(self, name: str) -> None:
        """Raise an error for values that the layer cannot compute with, such as indices out of range in a file.

        Args:
            name: name of the layer in errors.

        Raises:
            MPOError: invalid values. The message names the tensor.
        """
        for tensor, index in self.indices().items():
            index.require_valid(f"{name}.{tensor}")

    def numbers(self) -> Numbers:
        """Parameters, bytes and multiply-adds of the stored weight.

        Tensors of every type count, such as the integer codes of a quantised core; index buffers count only in bytes.
        """
        indices = self.indices()
        # By identity, so that a tensor with two names counts once.
        tensors = {id(tensor): (name, tensor) for name, tensor in reversed(self.state_dict(keep_vars=True).items())}
        stored = {name: tensor for name, tensor in tensors.values() if name.rpartition(".")[2] != "bias"}
        return Numbers(
            parameters=sum(tensor.numel() for name, tensor in stored.items() if name not in indices),
            bytes=sum(map(stored_bytes, stored.values())),
            macs=self.macs(),
        )

    def form(self) -> str:
        """A short description of the layer, for tables."""
        return self.kind

    def replacing(self, layer: nn.Module) -> Self:
        """Remember which layer this one replaces, so that :meth:`to_dense` returns the same type, and return self.

        Args:
            layer: a dense layer, or a compressed one, which passes on what it remembers; not kept.

        Example:
            >>> from mpochain.nn import MPOLinear
            >>> from transformers.pytorch_utils import Conv1D
            >>> dense = Conv1D(6, 4)
            >>> MPOLinear(4, 6, max_bond=2).replacing(dense).to_dense()
            Conv1D(nf=6, nx=4)
        """
        form = layer._dense_form if isinstance(layer, CompressedLayer) else DenseForm.of(layer)
        if form is not None and form.shape == self.shape and form.is_embedding is self.looks_up:
            self._dense_form = form
        return self

    def to_dense(self) -> nn.Module:
        """The dense layer with the same function, of the type that this layer replaced; it shares no memory.

        It requires gradients if any parameter of the compressed weight does, and its bias if the layer's bias does.
        """
        form = self._dense_form
        if form is None:
            return self._default_dense()
        # In the layer's own dtype even under autocast.
        with torch.inference_mode(False), torch.no_grad(), without_autocast(self._stored()):
            return in_the_state_of(self, form.filled(self.weight, self.bias))

    def to_linear(self) -> nn.Linear:
        """The ``torch.nn.Linear`` with the same function, sharing no memory."""
        with torch.inference_mode(False), torch.no_grad(), without_autocast(self._stored()):
            return in_the_state_of(self, linear_of(self.weight, self.bias))

    def as_linears(self, *, dequantize: bool = False) -> nn.Module:  # noqa: ARG002  # used by layers in codes
        """A layer with the same function that is made of ``torch.nn.Linear``; the layer itself if it is already.

        Args:
            dequantize: whether a layer in codes is dequantised first; otherwise it is refused.

        Raises:
            ArgumentError: the layer is of a form that this cannot express.
        """
        raise ArgumentError(
            f"{type(self).__name__} ({self.form()}) cannot be made of torch.nn.Linear; make it dense (to_dense())"
        )

    def _default_dense(self) -> nn.Module:
        """The dense layer, if this one replaced none."""
        return self.to_linear()

    def learning_rate_scales(self) -> dict[str, float]:
        """Learning rate factors by parameter name; see :func:`mpochain.surgery.learning_rate_scales`."""
        return {}

    def central_cores(self) -> tuple[str, ...]:
        """Names of the largest core of each chain of two sites or more; none in a layer without chains."""
        return ()

    def set_execution(self, *, cache: bool = False, autotune: bool | None = None, memory: Memory | None = None) -> Self:
        """Set how the layer runs, see :func:`mpochain.set_execution`, and return the layer.

        Args:
            cache: whether calls without gradients share a cached matrix.
            autotune: whether plans, and fused kernels on a GPU, are measured ahead; None for plans by real calls.
            memory: deprecated; ``"fast"`` means ``cache=True``.

        Raises:
            ArgumentError: an unknown ``memory``.
        """
        self._set_execution(requested_cache(cache, memory), autotune)
        return self

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in nn.Linear, which callers may use
        """``(..., in_features)`` to ``(..., out_features)``; called as ``layer(x)`` or ``layer(input=x)``.

        Raises:
            ShapeError: the last axis of ``input`` is not ``in_features``.
        """
        if type(input) is not Tensor and is_proxy(input):
            return leaf_of_graph(self, input)
        self._require_input(input)
        # The first question is asked here too, as a call of its own takes a part of a small product's time.
        if self._kept is not None and not (
            is_traced() or (torch.is_grad_enabled() and self._records_gradients(input)) or is_managed(self)
        ):
            kept = self._kept.get(input, self._kept_from(), self._to_keep, self._kept_buffers())
            if kept is not None:
                return self._run_kept(input, kept)
        return self.compact(input)

    def extra_repr(self) -> str:
        """Features and bias, for ``print(layer)``."""
        return f"{self.in_features} -> {self.out_features}, bias={self.bias is not None}"

    def _set_execution(self, cache: bool, autotune: bool | None) -> None:  # noqa: ARG002  # layers with plans use it
        self._kept = Kept() if cache else None

    def _require_input(self, x: Tensor) -> None:
        # torch.jit.trace warns of conditions on sizes; products in the trace check them too.
        if not is_recorded() and (not x.ndim or x.shape[-1] != self.in_features):
            raise ShapeError(
                f"{type(self).__name__} got x of shape {tuple(x.shape)}; expected (..., {self.in_features})"
            )

    def _records_gradients(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Load the layer's tensors, also under former names; called by ``load_state_dict`` before submodules load."""
        for former, name in self.former_names().items():
            if prefix + former in state_dict:
                state_dict.setdefault(prefix + name, state_dict.pop(prefix + former))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _kept_from(self) -> Sequence[Tensor] | None:
        """The parameters that the cached matrix depends on; None if nothing may be cached."""
        bias = self.bias
        return [parameter for parameter in self.parameters() if parameter is not bias]

    def _kept_buffers(self) -> Sequence[Tensor]:
        """The buffers that the cached matrix depends on, such as integer codes."""
        return buffers_of(self)

    def _to_keep(self) -> Any:
        """Compute what to cache: the matrix, or what :meth:`_run_kept` needs in place of it."""
        return packed(self.weight)

    def _run_kept(self, x: Tensor, kept: Any) -> Tensor:
        """The layer's output for ``x``, computed with what :meth:`_to_keep` returned."""
        return product(x, kept, self.bias)

    def _stored(self) -> Tensor:
        """A tensor with the element type and device of the weight."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                return tensor
        raise ArgumentError(f"{type(self).__name__} holds no tensor of floats; define its dtype and device")
