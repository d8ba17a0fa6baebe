"""Low-rank linear layer in interpolative form: some rows of the matrix, and coefficients for the other rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.decomposition import Interpolation, interpolative_parameters
from mpochain.errors import ArgumentError, ShapeError, SpecError
from mpochain.execution.low_rank_choice import LowRankChoice
from mpochain.execution.packed import PackedMatrix, packed, product
from mpochain.execution.tracing import is_traced
from mpochain.nn.children import float_tensor_of, is_plain, linear_without_values, matrix_of
from mpochain.nn.entry import MatrixEntry, Size
from mpochain.nn.index import Index
from mpochain.nn.initialization import uniform_bias_
from mpochain.nn.interpolative_kept import KeptFactors, keeps_matrix, kept_factors, two_factors_pay
from mpochain.nn.interpolative_product import in_places, interpolative_product
from mpochain.nn.layer import CompressedLayer
from mpochain.nn.ordering import in_order

__all__ = ["InterpolativeEntry", "InterpolativeLinear"]


class InterpolativeEntry(MatrixEntry):
    """Entry of an :class:`InterpolativeLinear`."""

    kind: Literal["interpolative"] = "interpolative"
    rank: Size
    bias: bool


class InterpolativeLinear(CompressedLayer):
    """``y = x W^T + b`` with ``W`` of rank ``r`` stored as ``r`` of its rows: ``(..., in) -> (..., out)``.

    ``r`` outputs are ``x rows^T``, the others are linear combinations of these. The layer has ``r (out + in - r)``
    parameters and multiply-adds per row, ``r^2`` fewer than two factors of the same matrix. Source: see
    :func:`mpochain.decomposition.interpolative`.

    Both factors are ``torch.nn.Linear``, so that quantisers and adapters, which replace modules of that type, find
    them. As long as both are plain the layer computes with their weights; otherwise it calls them.

    Args:
        in_features: size of each input row.
        out_features: size of each output row.
        rank: rank of the matrix, at most ``min(in_features, out_features)``.
        bias: whether the layer has a bias.
        device: device of the parameters.
        dtype: element type of the parameters.

    Attributes:
        rows: ``torch.nn.Linear`` of the stored rows, ``(..., in)`` to ``(..., r)``, or what replaced it.
        coefficients: ``torch.nn.Linear`` of the coefficients, ``(..., r)`` to ``(..., out - r)``, or what replaced it.

    Raises:
        ArgumentError: sizes that are not positive integers.
        SpecError: a rank above ``min(in_features, out_features)``.

    Example:
        >>> layer = InterpolativeLinear(64, 48, rank=12, bias=False)
        >>> sum(p.numel() for p in layer.parameters()), layer(torch.zeros(2, 5, 64)).shape
        (1200, torch.Size([2, 5, 48]))
    """

    kind = "interpolative"
    Entry = InterpolativeEntry
    rows: nn.Module
    coefficients: nn.Module
    place: Tensor
    # Chooses the fused product where it was measured to be faster; None without autotuning.
    _choice: LowRankChoice | None = None

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
                raise ArgumentError(f"{label} must be a positive integer, got {size!r}")
        if rank > min(in_features, out_features):
            raise SpecError(
                f"rank {rank} exceeds the smaller side of the {out_features}x{in_features} matrix; use nn.Linear"
            )
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.rows = linear_without_values(in_features, rank, device, dtype)
        self.coefficients = linear_without_values(rank, out_features - rank, device, dtype)
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        # Output j is column place[j] of [x rows^T, x rows^T coefficients^T].
        self.register_buffer("place", torch.arange(out_features, dtype=torch.int32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters; matrix entries have the standard deviation of ``nn.Linear``, ``1 / sqrt(3 in)``.

        Raises:
            ArgumentError: ``rows`` or ``coefficients`` was replaced, or has hooks.
        """
        rows, coefficients = self._plain_weights()
        if rows.is_meta:  # no numbers, and torch takes a millisecond
            return
        deviation = 1 / math.sqrt(3 * self.in_features)
        nn.init.normal_(rows, std=deviation)
        nn.init.normal_(coefficients, std=1 / math.sqrt(self.rank))
        uniform_bias_(self.bias, self.in_features)

    @classmethod
    def from_interpolation(cls, interpolation: Interpolation, bias: Tensor | None = None) -> InterpolativeLinear:
        """A layer with copies of the tensors of an interpolation, and of a bias.

        Raises:
            ShapeError: a bias whose shape is not ``(out_features,)``.
        """
        rows, coefficients = interpolation.rows, interpolation.coefficients
        out_features = len(interpolation.permutation)
        if bias is not None and tuple(bias.shape) != (out_features,):
            raise ShapeError(f"the bias must have shape ({out_features},), got {tuple(bias.shape)}")
        with torch.device("meta"):
            layer = cls(rows.shape[1], out_features, rows.shape[0], bias=bias is not None, dtype=rows.dtype)
        layer = layer.to_empty(device=rows.device)
        with torch.no_grad():
            for ours, theirs in zip(layer._plain_weights(), (rows, coefficients), strict=True):
                ours.copy_(theirs)
            layer.place.copy_(torch.tensor(interpolation.permutation, dtype=torch.int32, device="cpu"))
            if bias is not None and layer.bias is not None:
                layer.bias = nn.Parameter(bias.detach().clone())
        return layer

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        rows, coefficients = self._matrices()
        return torch.cat([rows, coefficients @ rows]).index_select(0, self.place)

    def former_names(self) -> dict[str, str]:
        """See :meth:`mpochain.nn.CompressedLayer.former_names`."""
        return {"rows": "rows.weight", "coefficients": "coefficients.weight"}

    def permute_inputs(self, order: Tensor) -> None:
        """Change the layer in place such that its input ``k`` is what was its input ``order[k]``.

        Raises:
            ArgumentError: ``rows`` or ``coefficients`` was replaced, or has hooks.
        """
        rows, _ = self._plain_weights()
        rows.copy_(rows[:, order].clone())

    def as_linears(self, *, dequantize: bool = False) -> nn.Module:  # noqa: ARG002  # see the base class
        """The layer itself."""
        return self

    def can_reorder(self) -> bool:
        """Whether both factors are ``torch.nn.Linear`` that multiply with their weights and do nothing else."""
        return self._weights() is not None

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """See :meth:`mpochain.nn.CompressedLayer.factors`; None where a factor does more than multiply."""
        weights = self._weights()
        return None if weights is None else (self._left(weights[1]), weights[0])

    def indices(self) -> dict[str, Index]:
        """See :meth:`mpochain.nn.CompressedLayer.indices`."""
        return {"place": Index(self.place, self.out_features, permutation=True)}

    def entry(self) -> InterpolativeEntry:
        """The sizes, the rank, and whether the layer has a bias."""
        return InterpolativeEntry(
            out_features=self.out_features,
            in_features=self.in_features,
            rank=self.rank,
            bias=self.bias is not None,
        )

    @classmethod
    def from_entry(cls, entry: InterpolativeEntry) -> Self:
        """See :meth:`mpochain.nn.CompressedLayer.from_entry`."""
        with torch.device("meta"):
            return cls(entry.in_features, entry.out_features, entry.rank, bias=entry.bias)

    def form(self) -> str:
        """The rank, in words."""
        return f"rank {self.rank}, interpolative"

    def macs(self) -> int:
        """Multiply-adds per input row."""
        return interpolative_parameters(self.out_features, self.in_features, self.rank)

    def _weights(self) -> tuple[Tensor, Tensor] | None:
        """The weights of both factors; None where one does more than multiply, so that it has to be called."""
        # Module.__getattr__ would take longer than all questions here.
        modules = self._modules
        rows, coefficients = modules["rows"], modules["coefficients"]
        if is_plain(rows) and is_plain(coefficients):
            return cast("tuple[Tensor, Tensor]", (rows._parameters["weight"], coefficients._parameters["weight"]))
        return None

    def _plain_weights(self) -> tuple[Tensor, Tensor]:
        weights = self._weights()
        if weights is None:
            kinds = " and ".join(dict.fromkeys(type(factor).__name__ for factor in (self.rows, self.coefficients)))
            raise ArgumentError(
                f"the factors of the {type(self).__name__} are {kinds} with changes of their own, such as those of a "
                "quantiser or adapter; expected plain torch.nn.Linear. Do this before they are changed, or merge "
                "adapters first (merge_and_unload())"
            )
        return weights

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """The matrices of both factors, whatever they are."""
        weights = self._weights()
        if weights is not None:
            return weights
        rows = matrix_of(self.rows, self.in_features, self._stored())
        if self.rank == self.out_features:
            return rows, rows.new_zeros(0, self.rank)
        return rows, matrix_of(self.coefficients, self.rank, self._stored())

    def _stored(self) -> Tensor:
        return float_tensor_of(self)

    def _kept_from(self) -> Sequence[Tensor] | None:
        return self._weights()

    def _kept_buffers(self) -> Sequence[Tensor]:
        place = self._buffers["place"]
        return () if place is None else (place,)

    def _to_keep(self) -> Tensor | PackedMatrix | KeptFactors | None:
        """The dense matrix or copies of the factors, as is faster in calls of few rows; None where nothing is."""
        rows, coefficients = self._matrices()
        if rows.device.type != "cpu":
            pays = two_factors_pay(self.out_features, self.in_features, self.rank)
            return self._left(coefficients) if pays else self.weight
        if keeps_matrix(self.out_features, self.in_features, self.rank, rows.dtype):
            # In a model whose other products of one row are MKL's, a packed one in float32 costs more than it gains.
            return packed(self.weight) if rows.dtype.itemsize == 2 else self.weight
        return kept_factors(rows, coefficients)

    def _left(self, coefficients: Tensor) -> Tensor:
        """Left factor ``(out_features, rank)`` of the matrix: identity rows for the stored rows, else coefficients."""
        identity = torch.eye(self.rank, dtype=coefficients.dtype, device=coefficients.device)
        return torch.cat([identity, coefficients]).index_select(0, self.place)

    def _run_kept(self, x: Tensor, kept: Tensor | PackedMatrix | KeptFactors) -> Tensor:
        count = x.numel() // self.in_features
        module: Any = self._modules["rows"]  # plain, since something is kept
        rows = module._parameters["weight"]
        if isinstance(kept, Tensor) and kept.shape[1] != self.in_features:
            return F.linear(F.linear(x, rows), kept, self.bias)
        if not isinstance(kept, KeptFactors):
            sizes = self.out_features, self.in_features, self.rank
            fast = x.device.type != "cpu" or keeps_matrix(*sizes, kept.dtype, rows=count)
            return product(x, kept, self.bias) if fast else self.compact(x)
        y = kept.product(x, count, rows, self._look_up(), self.bias)
        return self.compact(x) if y is None else y

    def compact(self, x: Tensor) -> Tensor:
        """See :meth:`mpochain.nn.CompressedLayer.compact`."""
        weights = self._weights()
        if weights is None:
            return self._called(x)
        if self._choice is None:
            return self._by_torch(x, *weights)
        return self._choice.product(self._by_torch, x, *weights, self.place, self.bias)

    def _by_torch(self, x: Tensor, rows: Tensor, coefficients: Tensor) -> Tensor:
        return interpolative_product(x, rows, coefficients, self._look_up(), self.bias)

    def _look_up(self) -> Tensor | None:
        """The places of the outputs; None if they are computed in order. A graph looks them up in any case."""
        place = self._buffers["place"]
        return None if place is not None and not is_traced() and in_order(place) else place

    def _set_execution(self, cache: bool, autotune: bool | None) -> None:
        super()._set_execution(cache, autotune)
        self._choice = LowRankChoice() if autotune else None

    def _called(self, x: Tensor) -> Tensor:
        """The layer's output by calls of its factors, which may be of any type."""
        kept = self.rows(x)
        # Quantisers and adapters fail for matrices without rows.
        outputs = [kept] if self.rank == self.out_features else [kept, self.coefficients(kept)]
        return in_places(outputs, self._look_up(), self.bias)

    def extra_repr(self) -> str:
        """Features, rank and bias, for ``print(layer)``."""
        return f"{self.in_features} -> {self.out_features}, rank {self.rank}, bias={self.bias is not None}"
