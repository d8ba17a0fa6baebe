"""Linear layer whose weight is a chain, or a short sum of chains, with one ``torch.nn.Linear`` for each core."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import ArgumentError, ShapeError
from mpochain.nn.central import central
from mpochain.nn.children import evaluated, float_tensor_of, is_plain, linear_without_values
from mpochain.nn.entry import MOST_TERMS, LayerEntry, SpecEntry
from mpochain.nn.index import Index
from mpochain.nn.initialization import normal_, uniform_bias_
from mpochain.nn.layer import CompressedLayer
from mpochain.nn.ordering import permutation_buffer, reordered
from mpochain.spec import ChainSpec

__all__ = ["LinearChain", "LinearChainEntry"]


class LinearChainEntry(LayerEntry):
    """Entry of a :class:`LinearChain`."""

    kind: Literal["linear_chain"] = "linear_chain"
    rows: bool
    columns: bool
    bias: bool
    terms: Annotated[list[SpecEntry], Field(min_length=1, max_length=MOST_TERMS)]

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the weight."""
        return self.terms[0].shape


class LinearChain(CompressedLayer):
    """``y = x W^T + b`` with a ``torch.nn.Linear`` for each core of ``W``: ``(..., in) -> (..., out)``.

    A chain is swept from its last site to its first: site ``k`` multiplies ``i_k`` inputs and its right bond,
    ``i_k r_{k+1}`` features, to ``o_k r_k`` features, and between the sites features are only arranged anew. So
    quantisers and adapters, which replace ``torch.nn.Linear``, find every core; each is called, whatever it became.
    :func:`mpochain.as_linears` builds such layers. An :class:`mpochain.MPOLinear` of the same cores is faster, as it
    plans its contractions.

    Args:
        terms: spec of each chain; the weight is their sum.
        bias: whether the layer has a bias.
        place: ``(out,)``: output ``j`` of the layer is output ``place[j]`` of the chains; None for the identity.
        columns: ``(in,)``: input ``k`` of the chains is input ``columns[k]`` of the layer; None for the identity.
        device: device of the parameters.
        dtype: element type of the parameters.

    Attributes:
        terms: for each chain the modules of its sites, the first site first.

    Raises:
        ArgumentError: no spec, or an order that is no permutation.
        ShapeError: specs of different shapes.

    Example:
        >>> layer = LinearChain([ChainSpec((4, 12), (8, 8), 3)], bias=False)
        >>> layer.terms[0]
        ModuleList(
          (0): Linear(in_features=24, out_features=4, bias=False)
          (1): Linear(in_features=8, out_features=36, bias=False)
        )
        >>> layer(torch.zeros(2, 5, 64)).shape
        torch.Size([2, 5, 48])
    """

    kind = "linear_chain"
    Entry = LinearChainEntry
    terms: nn.ModuleList
    place: Tensor | None
    columns: Tensor | None

    def __init__(
        self,
        terms: Sequence[ChainSpec],
        *,
        bias: bool = True,
        place: Tensor | None = None,
        columns: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not terms:
            raise ArgumentError("a layer needs at least one chain")
        if len({spec.shape for spec in terms}) > 1:
            raise ShapeError(f"the chains of a layer must have one shape, got {[spec.shape for spec in terms]}")
        self.specs = tuple(terms)
        self.out_features, self.in_features = self.specs[0].shape
        self.terms = nn.ModuleList(
            nn.ModuleList(
                linear_without_values(in_ * right, out * left, device, dtype)
                for left, out, in_, right in spec.core_shapes
            )
            for spec in self.specs
        )
        for name, order, size in (("place", place, self.out_features), ("columns", columns, self.in_features)):
            self.register_buffer(name, None if order is None else permutation_buffer(order, size, name))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    @classmethod
    def from_cores(
        cls,
        terms: Sequence[tuple[ChainSpec, Sequence[Tensor]]],
        bias: Tensor | None = None,
        *,
        place: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> LinearChain:
        """A layer with copies of the cores of one or more chains, and of a bias; what is frozen stays frozen.

        Args:
            terms: spec and cores ``(r_left, out, in, r_right)`` of each chain.
            bias: ``(out_features,)``.
            place: see :class:`LinearChain`.
            columns: see :class:`LinearChain`.

        Example:
            >>> spec = ChainSpec((2, 3), (2, 2), 2)
            >>> cores = [torch.randn(shape) for shape in spec.core_shapes]
            >>> LinearChain.from_cores([(spec, cores)]).terms[0][0].weight.shape
            torch.Size([2, 4])
        """
        first = terms[0][1][0]
        with torch.device("meta"):
            layer = cls([spec for spec, _ in terms], bias=bias is not None, dtype=first.dtype)
        layer = layer.to_empty(device=first.device)
        for name, order in (("place", place), ("columns", columns)):
            setattr(layer, name, None if order is None else order.detach().clone())
        with torch.no_grad():
            for sites, (_, cores) in zip(layer._sites(), terms, strict=True):
                for site, core in zip(sites, cores, strict=True):
                    site.weight.copy_(core.transpose(0, 1).reshape(site.weight.shape))
                    site.weight.requires_grad_(core.requires_grad)
            if bias is not None:
                layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
        return layer

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        like = self._stored()
        with evaluated(self):
            return self._product(torch.eye(self.in_features, dtype=like.dtype, device=like.device)).T

    def reset_parameters(self) -> None:
        """Draw new parameters; matrix entries have the standard deviation of ``nn.Linear``, ``1 / sqrt(3 in)``.

        Raises:
            ArgumentError: a site was replaced, or has hooks.
        """
        std = 1 / math.sqrt(3 * self.in_features * len(self.specs))
        for sites, spec in zip(self._sites(), self.specs, strict=True):
            if not all(map(is_plain, sites)):
                raise ArgumentError(
                    f"a site of the {type(self).__name__} was replaced, such as by a quantiser or adapter; draw new "
                    "parameters before, or merge adapters first (merge_and_unload())"
                )
            normal_([site.weight for site in sites], spec, std)
        uniform_bias_(self.bias, self.in_features)

    def as_linears(self, *, dequantize: bool = False) -> nn.Module:  # noqa: ARG002  # see the base class
        """The layer itself."""
        return self

    def indices(self) -> dict[str, Index]:
        """See :meth:`mpochain.nn.CompressedLayer.indices`."""
        buffers = {"place": (self.place, self.out_features), "columns": (self.columns, self.in_features)}
        return {
            name: Index(values, size, permutation=True)
            for name, (values, size) in buffers.items()
            if values is not None
        }

    def entry(self) -> LinearChainEntry:
        """The specs of all terms, whether rows and columns are permuted, and whether the layer has a bias."""
        return LinearChainEntry(
            rows=self.place is not None,
            columns=self.columns is not None,
            bias=self.bias is not None,
            terms=[SpecEntry.of(spec) for spec in self.specs],
        )

    @classmethod
    def from_entry(cls, entry: LinearChainEntry) -> Self:
        """See :meth:`mpochain.nn.CompressedLayer.from_entry`."""
        out_features, in_features = entry.shape
        with torch.device("meta"):
            return cls(
                [term.spec() for term in entry.terms],
                bias=entry.bias,
                place=torch.empty(out_features, dtype=torch.int32) if entry.rows else None,
                columns=torch.empty(in_features, dtype=torch.int32) if entry.columns else None,
            )

    def form(self) -> str:
        """The specs of all terms."""
        permuted = ", permuted" if self.place is not None or self.columns is not None else ""
        return f"{' + '.join(map(str, self.specs))}{permuted}, as linears"

    def learning_rate_scales(self) -> dict[str, float]:
        """``in_features / (i_k r_k)`` for the weight of site ``k``, ``r_k`` its right bond."""
        return {
            f"terms.{number}.{k}.weight": self.in_features / site.in_features
            for number, sites in enumerate(self._sites())
            for k, site in enumerate(sites)
            if is_plain(site)
        }

    def central_cores(self) -> tuple[str, ...]:
        """See :meth:`mpochain.nn.CompressedLayer.central_cores`; none if a site was replaced."""
        return tuple(
            central([(f"terms.{number}.{k}.weight", site.weight.numel()) for k, site in enumerate(sites)])
            for number, sites in enumerate(self._sites())
            if len(sites) > 1 and all(map(is_plain, sites))
        )

    def macs(self) -> int:
        """Multiply-adds per input row of a sweep from the last site to the first."""
        return sum(spec.macs(leftward=True) for spec in self.specs)

    def compact(self, x: Tensor) -> Tensor:
        """See :meth:`mpochain.nn.CompressedLayer.compact`."""
        y = self._product(x)
        # Under autocast a bias of a wider dtype would promote the output; nn.Linear does not.
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """Features, specs and bias, for ``print(layer)``."""
        return f"{self.in_features} -> {self.out_features}, {self.form()}, bias={self.bias is not None}"

    def _stored(self) -> Tensor:
        return float_tensor_of(self)

    def _kept_from(self) -> Sequence[Tensor] | None:
        sites = [site for sites in self._sites() for site in sites]
        return [site.weight for site in sites] if all(map(is_plain, sites)) else None

    def _kept_buffers(self) -> Sequence[Tensor]:
        return ()  # orders change only together with the cores

    def _sites(self) -> list[list[Any]]:
        return [list(sites._modules.values()) for sites in self.terms]

    def _product(self, x: Tensor) -> Tensor:
        """The layer's output without its bias."""
        x = x if self.columns is None else reordered(x, self.columns)
        outputs = [self._swept(x, spec, sites) for spec, sites in zip(self.specs, self._sites(), strict=True)]
        y = sum(outputs[1:], start=outputs[0])
        return y if self.place is None else reordered(y, self.place)

    def _swept(self, x: Tensor, spec: ChainSpec, sites: Sequence[Any]) -> Tensor:
        """The product with one chain, from its last site to its first."""
        padded_out, padded_in = spec.padded_shape
        state = x if padded_in == self.in_features else F.pad(x, (0, padded_in - self.in_features))
        before, done = padded_in, 1
        for site, (left, out, in_, right) in zip(reversed(sites), reversed(spec.core_shapes), strict=True):
            before //= in_
            # (rows, i_1 .. i_{k-1}, i_k, o_n .. o_{k+1}, r_{k+1}), of which i_k and the bond are multiplied.
            state = state.reshape(-1, before, in_, done, right).transpose(2, 3)
            state = site(state.reshape(-1, in_ * right))
            done *= out
            state = state.reshape(-1, before, done, left)
        order = range(spec.sites, 0, -1)
        y = state.reshape(-1, *reversed(spec.out_dims)).permute(0, *order).reshape(*x.shape[:-1], padded_out)
        return y if padded_out == self.out_features else y[..., : self.out_features]
