"""A linear layer whose weight has the rows of an embedding that is not held."""

from __future__ import annotations

from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mpochain.errors import ShapeError
from mpochain.execution.kept import Kept
from mpochain.nn.dense import linear_of
from mpochain.nn.embeddings.rows import RowEmbedding
from mpochain.planning import Memory

__all__ = ["RowLinear"]

# Elements that rows and what they are made of may take at once: 64 MiB of float32.
_AT_ONCE = 1 << 24


class RowLinear(nn.Module):
    """``y = x W^T`` with ``W`` the table of an embedding: ``(..., embedding_dim)`` to ``(..., num_embeddings)``.

    All rows are needed for every input, so unlike a look-up this makes them all, so many at a time that they and what
    they are made of take some 64 MiB; the backward pass makes them again. For heads that are tied to an embedding, see
    :func:`mpochain.surgery.tied_head`; that of an :class:`mpochain.MPOEmbedding` is a chain and makes none.

    Args:
        table: becomes a submodule and is not copied.

    Example:
        >>> from mpochain.nn import EntangledEmbedding
        >>> table = EntangledEmbedding(30, 16, order=2)
        >>> x = torch.randn(2, 16)
        >>> torch.allclose(RowLinear(table)(x), x @ table.weight.T, atol=1e-6)
        True
    """

    bias: None

    def __init__(self, table: RowEmbedding) -> None:
        super().__init__()
        self.table = table
        self.in_features, self.out_features = table.embedding_dim, table.num_embeddings
        self.register_parameter("bias", None)
        self._kept: Kept | None = None

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        return self.table.weight

    @property
    def memory(self) -> Memory:
        """How the layer is run."""
        return "compact" if self._kept is None else "fast"

    def to_linear(self) -> nn.Linear:
        """The dense layer with the same function, sharing no memory."""
        return linear_of(self.weight.detach(), None, self.training)

    def macs(self) -> int:
        """Multiply-adds of one input row, those that make the table left out: they are shared by all inputs."""
        return self.in_features * self.out_features

    def reset_parameters(self) -> None:
        """Draw new parameters of the table."""
        self.table.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``.

        Raises:
            ShapeError: the last axis of ``x`` is not ``in_features``.
        """
        if not x.ndim or x.shape[-1] != self.in_features:
            raise ShapeError(f"RowLinear got x of shape {tuple(x.shape)}; expected (..., {self.in_features})")
        held = list(self.table.parameters())
        learns = torch.is_grad_enabled() and (x.requires_grad or any(each.requires_grad for each in held))
        if self._kept is not None and not learns:
            made = self._kept.get(x, held, lambda: self.weight)
            if made is not None:
                return F.linear(x, made)
        ids = torch.arange(self.out_features, device=held[0].device)
        parts = ids.split(max(_AT_ONCE // (self.table.scratch() + self.in_features), 1))
        if len(parts) == 1:
            return self._some(x, ids)
        if not learns:
            return torch.cat([self._some(x, part) for part in parts], dim=-1)
        # Nothing is drawn, so no state of generators need be kept.
        again = partial(checkpoint, self._some, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(x, part) for part in parts], dim=-1)

    def _some(self, x: Tensor, ids: Tensor) -> Tensor:
        """The outputs of some rows."""
        return F.linear(x, self.table.rows(ids))

    def set_execution(self, *, memory: Memory = "compact", autotune: bool = False) -> Self:
        """Choose how the layer is run, see :func:`mpochain.surgery.set_execution`, and return it.

        Raises:
            SpecError: an unknown ``memory``.
        """
        self.table.set_execution(memory=memory, autotune=autotune)
        self._kept = Kept() if memory == "fast" else None
        return self

    def extra_repr(self) -> str:
        """Features, for ``print(layer)``; the table prints itself."""
        return f"{self.in_features} -> {self.out_features}"
