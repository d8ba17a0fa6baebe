"""A low-rank linear layer that keeps some rows of its matrix, and combines the others from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.decomposition import Interpolation, interpolative_parameters
from mpochain.errors import ShapeError, SpecError
from mpochain.execution.kept import Kept
from mpochain.nn.dense import linear_of
from mpochain.nn.ordering import reordered
from mpochain.planning import Memory

__all__ = ["InterpolativeLinear"]

# Two products were faster than one up to this share of its multiply-adds, if they save as many as a call costs.
_LOW_RANK, _CALL = 0.75, 1 << 16
# Input rows from which the identity is multiplied with, rather than outputs put in their places.
_MANY_ROWS = 64


class InterpolativeLinear(nn.Module):
    """``y = x W^T + b`` with ``W`` of rank ``r`` held as ``r`` of its rows: ``(..., in) -> (..., out)``.

    ``r`` outputs are ``x rows^T``, the others are combinations of these. Parameters and multiply-adds are
    ``r (out + in - r)``, ``r^2`` fewer than two factors have for the very same matrix. Source: see
    :func:`mpochain.decomposition.interpolative`.

    Args:
        in_features: size of each input row.
        out_features: size of each output row.
        rank: of the matrix, at most the smaller of both.
        bias: whether there is a bias.
        device: where the parameters live.
        dtype: their element type.

    Raises:
        SpecError: sizes that are not positive integers, or a rank over them.

    Example:
        >>> layer = InterpolativeLinear(64, 48, rank=12, bias=False)
        >>> sum(p.numel() for p in layer.parameters()), layer(torch.zeros(2, 5, 64)).shape
        (1200, torch.Size([2, 5, 48]))
    """

    bias: Tensor | None
    place: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for label, size in (("in_features", in_features), ("out_features", out_features), ("rank", rank)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise SpecError(f"{label} must be a positive integer, got {size!r}")
        if rank > min(in_features, out_features):
            raise SpecError(
                f"rank {rank} is over the smaller side of a {out_features}x{in_features} matrix; use nn.Linear"
            )
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self._kept: Kept | None = None

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.rows = empty(rank, in_features)
        self.coefficients = empty(out_features - rank, rank)
        self.register_parameter("bias", empty(out_features) if bias else None)
        # Where each output is found in [x rows^T, x rows^T coefficients^T].
        self.register_buffer("place", torch.arange(out_features, dtype=torch.int32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters; every entry of the matrix has the deviation of ``nn.Linear``, ``1 / sqrt(3 in)``."""
        deviation = 1 / math.sqrt(3 * self.in_features)
        nn.init.normal_(self.rows, std=deviation)
        nn.init.normal_(self.coefficients, std=1 / math.sqrt(self.rank))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def from_interpolation(cls, interpolation: Interpolation, bias: Tensor | None = None) -> InterpolativeLinear:
        """A layer that holds copies of the arrays of an interpolation of torch tensors, and of a bias.

        Raises:
            ShapeError: a bias that is not of ``(out_features,)``.
        """
        rows, coefficients = interpolation.rows, interpolation.coefficients
        out_features = len(interpolation.place)
        if bias is not None and tuple(bias.shape) != (out_features,):
            raise ShapeError(f"the bias must have shape ({out_features},), got {tuple(bias.shape)}")
        with torch.device("meta"):
            layer = cls(rows.shape[1], out_features, rows.shape[0], bias=bias is not None, dtype=rows.dtype)
        layer = layer.to_empty(device=rows.device)
        with torch.no_grad():
            layer.rows.copy_(rows)
            layer.coefficients.copy_(coefficients)
            layer.place.copy_(torch.tensor(interpolation.place, dtype=torch.int32))
            if bias is not None and layer.bias is not None:
                layer.bias = nn.Parameter(bias.detach().clone())
        return layer

    @property
    def memory(self) -> Memory:
        """How the layer is run."""
        return "compact" if self._kept is None else "fast"

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        return torch.cat([self.rows, self.coefficients @ self.rows]).index_select(0, self.place)

    @property
    def orders(self) -> dict[str, tuple[Tensor, int]]:
        """Each index tensor with the number of what it orders."""
        return {"place": (self.place, self.out_features)}

    def to_linear(self) -> nn.Linear:
        """The dense layer with the same function, sharing no memory."""
        return linear_of(self.weight.detach(), self.bias, self.training)

    def macs(self) -> int:
        """Multiply-adds of one input row."""
        return interpolative_parameters(self.out_features, self.in_features, self.rank)

    def set_execution(self, *, memory: Memory = "compact", autotune: bool = False) -> InterpolativeLinear:  # noqa: ARG002  # as chains have it
        """Choose how the layer is run, see :func:`mpochain.surgery.set_execution`; there is nothing to tune.

        Raises:
            SpecError: an unknown ``memory``.
        """
        if memory not in ("compact", "fast"):
            raise SpecError(f"memory must be 'compact' or 'fast', got {memory!r}")
        self._kept = Kept() if memory == "fast" else None
        return self

    def _folded(self) -> Tensor:
        """What fast execution keeps: the matrix, or its left factor where that leaves much less to do."""
        dense = self.in_features * self.out_features
        product = self.rank * (self.in_features + self.out_features)
        return self._left() if product <= min(_LOW_RANK * dense, dense - _CALL) else self.weight

    def _left(self) -> Tensor:
        """``(out_features, rank)``, which makes all outputs of the kept ones: the identity among the others' rows."""
        whole = torch.eye(self.rank, dtype=self.coefficients.dtype, device=self.coefficients.device)
        return torch.cat([whole, self.coefficients]).index_select(0, self.place)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``.

        Raises:
            ShapeError: the last axis of ``x`` is not ``in_features``.
        """
        if not x.ndim or x.shape[-1] != self.in_features:
            raise ShapeError(f"{self} got x of shape {tuple(x.shape)}; expected (..., {self.in_features})")
        if self._kept is not None and not self._records_gradients(x):
            rows = self.rows
            made = self._kept.get(x, (rows, self.coefficients), self._folded)
            if made is not None:
                # Two products are faster than one where they have much less to do.
                return F.linear(x if made.shape[1] == self.in_features else F.linear(x, rows), made, self.bias)
        kept = F.linear(x, self.rows)
        # To put the outputs in their places costs more than to multiply with the identity, if they are many; a traced
        # graph must not depend on how many they are.
        if torch.compiler.is_compiling() or x.numel() >= _MANY_ROWS * self.in_features:
            return F.linear(kept, self._left(), self.bias)
        others = F.linear(kept, self.coefficients)
        y = reordered(torch.cat([kept, others], dim=-1), self.place)
        # Under autocast a bias of a wider type would widen the output, which it does not do in nn.Linear.
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _records_gradients(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or any(each.requires_grad for each in self.parameters()))

    def extra_repr(self) -> str:
        """Features, rank and bias, for ``print(layer)``."""
        return f"{self.in_features} -> {self.out_features}, rank {self.rank}, bias={self.bias is not None}"
