"""Linear layer whose weight is a chain (matrix product operator), or a short sum of chains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from mpochain.chain import Algorithm, MPOChain
from mpochain.distributed import is_managed
from mpochain.errors import ArgumentError, DTypeError, ShapeError, SpecError
from mpochain.execution import ChainRunner
from mpochain.execution.tracing import is_proxy, is_recorded, is_traced, leaf_of_graph
from mpochain.factorization import decompose, decompose_terms
from mpochain.nn.central import central
from mpochain.nn.dense import dense_parameters
from mpochain.nn.entry import MOST_TERMS, LayerEntry, SpecEntry
from mpochain.nn.initialization import normal_, uniform_bias_
from mpochain.nn.layer import CompressedLayer
from mpochain.nn.linear_chain import LinearChain
from mpochain.nn.requested import requested_specs
from mpochain.planning import ContractionPlan
from mpochain.planning.batches import check_batch
from mpochain.spec import ChainSpec

__all__ = ["ChainsEntry", "MPOLinear"]


class ChainsEntry(LayerEntry):
    """Entry of an :class:`MPOLinear`."""

    kind: Literal["chains"] = "chains"
    bias: bool
    terms: Annotated[list[SpecEntry], Field(min_length=1, max_length=MOST_TERMS)]

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the weight."""
        return self.terms[0].shape


class _SeveralSpecsError(ArgumentError, AttributeError):
    """The spec of a layer that has several."""


class MPOLinear(CompressedLayer):
    """``y = x W^T + b`` with ``W`` stored as cores: ``(..., in_features) -> (..., out_features)``.

    A drop-in replacement for :class:`torch.nn.Linear`. Random initialisation gives ``W`` the same variance as
    ``nn.Linear``, for any number of sites, bonds and terms. Only first derivatives are supported: torch refuses second
    derivatives of a tiled sweep. For higher derivatives use ``to_linear()``.

    Args:
        in_features: size of each input row.
        out_features: size of each output row.
        max_bond: largest bond; clipped to the attainable maximum, see :attr:`spec`.
        sites: number of sites of the default dims, 2 if not given. They are balanced; a prime is padded.
        out_dims: out dim of each site, instead of the default.
        in_dims: in dim of each site, instead of the default.
        spec: the complete spec, instead of dims and ``max_bond``.
        terms: several specs of different dims; the weight is the sum of their chains.
        bias: whether the layer has a bias.
        device: device of the parameters.
        dtype: element type of the parameters.

    Raises:
        SpecError: dims that do not multiply to the features, or no bond.
        ArgumentError: sizes that are not positive integers, or contradictory arguments.

    Example:
        >>> layer = MPOLinear(768, 3072, max_bond=16)
        >>> print(layer.spec)
        3072x768 (48,64)|(24,32) bonds (16), 51,200 parameters
        >>> layer(torch.zeros(2, 5, 768)).shape
        torch.Size([2, 5, 3072])
    """

    kind = "chains"
    Entry = ChainsEntry
    _runners: tuple[ChainRunner, ...]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        max_bond: int | None = None,
        *,
        sites: int | None = None,
        out_dims: Iterable[int] | None = None,
        in_dims: Iterable[int] | None = None,
        spec: ChainSpec | None = None,
        terms: Sequence[ChainSpec] | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for label, size in (("in_features", in_features), ("out_features", out_features)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ArgumentError(f"{label} must be a positive integer, got {size!r}")
        specs = requested_specs((out_features, in_features), max_bond, sites, out_dims, in_dims, spec, terms)
        if spec is None and terms is None and max_bond is None:
            raise SpecError("a random chain needs max_bond=, spec= or terms=; full bonds would exceed the dense layer")
        self.in_features = in_features
        self.out_features = out_features
        self._runners = tuple(ChainRunner(term) for term in specs)
        self.core_names = tuple(
            tuple(f"core_{number}_{site}" for site in range(term.sites)) for number, term in enumerate(specs)
        )
        for names, term in zip(self.core_names, specs, strict=True):
            for name, shape in zip(names, term.core_shapes, strict=True):
                self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self, weight_std: float | None = None) -> None:
        """Draw new parameters.

        Args:
            weight_std: standard deviation of the entries of ``W``; by default that of ``nn.Linear``,
                ``1 / sqrt(3 in_features)``.
        """
        std = 1 / math.sqrt(3 * self.in_features) if weight_std is None else weight_std
        for spec, cores in zip(self.specs, self.cores, strict=True):
            normal_(cores, spec, std / math.sqrt(len(self.specs)))
        uniform_bias_(self.bias, self.in_features)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Module,
        spec: ChainSpec | None = None,
        *,
        out_dims: Iterable[int] | None = None,
        in_dims: Iterable[int] | None = None,
        max_bond: int | None = None,
        cutoff: float | None = None,
        sites: int | None = None,
        terms: Sequence[ChainSpec] | None = None,
        method: Algorithm = "auto",
        seed: int = 0,
        name: str | None = None,
    ) -> MPOLinear:
        """Decompose the weight of a dense layer into a chain; the bias is copied exactly.

        Args:
            linear: a ``torch.nn.Linear`` or Hugging Face ``Conv1D``; not changed, and shares no memory with the result.
            spec: the chain's spec; or give dims, ``max_bond`` and ``cutoff``.
            out_dims: out dim of each site.
            in_dims: in dim of each site.
            max_bond: largest bond; ``None`` for lossless.
            cutoff: allowed relative Frobenius error of the weight, in ``[0, 1)``.
            sites: number of sites of the default dims, 2 if not given.
            terms: several specs, for a sum of chains.
            method: ``"auto"``, ``"gram"``, ``"tt_svd"`` or ``"randomized"``; see :func:`mpochain.decompose`.
            seed: seed of the randomised method.
            name: name of the layer in errors.

        Raises:
            DTypeError: a module that is no linear layer, or weights that are not floats.
            SpecError: dims that do not fit.
            NonFiniteError: NaN or infinite weights.

        Example:
            >>> dense = nn.Linear(128, 512)
            >>> layer = MPOLinear.from_linear(dense, out_dims=(16, 32), in_dims=(8, 16), cutoff=0.01)
            >>> x = torch.randn(3, 128)
            >>> bool((layer(x) - dense(x)).norm() < 0.02 * dense(x).norm())
            True
        """
        label = f"the weight of {name or type(linear).__name__}"
        weight, bias = dense_parameters(linear, name)
        with torch.no_grad():
            source = weight.detach()
            specs = requested_specs(tuple(source.shape), max_bond, sites, out_dims, in_dims, spec, terms)
            chains: tuple[MPOChain, ...]
            if len(specs) == 1:
                chains = (decompose(source, specs[0], cutoff=cutoff, method=method, seed=seed, name=label),)
            else:
                if cutoff is not None:
                    raise SpecError("cutoff= chooses the bonds of one chain; give the bonds of terms in their specs")
                chains = decompose_terms(source, specs, method=method, seed=seed, name=label)
        layer = cls.from_chains(chains, bias=None if bias is None else bias.detach())
        for cores in layer.cores:
            for core in cores:
                core.requires_grad_(weight.requires_grad)
        if layer.bias is not None and bias is not None:
            layer.bias.requires_grad_(bias.requires_grad)
        return layer.replacing(linear).train(linear.training)

    @classmethod
    def from_chains(cls, chains: MPOChain | Sequence[MPOChain], bias: Tensor | None = None) -> MPOLinear:
        """A layer with copies of the cores of one or more chains of torch tensors, and of a bias.

        Raises:
            ArgumentError: no chain.
            SpecError: chains of different shapes.
            ShapeError: a bias whose shape is not ``(out_features,)``.
            DTypeError: cores that are not torch tensors.
        """
        chains = (chains,) if isinstance(chains, MPOChain) else tuple(chains)
        if not chains:
            raise ArgumentError("a layer needs at least one chain")
        first = chains[0].cores[0]
        if not isinstance(first, Tensor):
            raise DTypeError(f"a layer holds chains of torch tensors, got {type(first).__name__}; convert the cores")
        out_features, in_features = chains[0].shape
        if bias is not None and tuple(bias.shape) != (out_features,):
            raise ShapeError(f"the bias must have shape ({out_features},), got {tuple(bias.shape)}")
        with torch.device("meta"):
            layer = cls(
                in_features,
                out_features,
                terms=[chain.spec for chain in chains],
                bias=bias is not None,
                dtype=first.dtype,
            )
        layer = layer.to_empty(device=first.device)
        with torch.no_grad():
            for chain, cores in zip(chains, layer.cores, strict=True):
                for ours, theirs in zip(cores, chain.cores, strict=True):
                    ours.copy_(theirs)
            if bias is not None and layer.bias is not None:
                layer.bias = nn.Parameter(bias.detach().clone())
        return layer

    @property
    def specs(self) -> tuple[ChainSpec, ...]:
        """The spec of each term, bonds clipped."""
        return tuple(runner.spec for runner in self._runners)

    @property
    def spec(self) -> ChainSpec:
        """The spec of the layer's only chain, bonds clipped.

        A layer that is a sum of several chains has no such attribute, see :attr:`specs`.

        Raises:
            ArgumentError: the layer is a sum; the error is an ``AttributeError`` too, so that ``hasattr`` is False.
        """
        if len(self._runners) > 1:
            raise AttributeError  # python asks __getattr__ next, which says why
        return self._runners[0].spec

    def __getattr__(self, name: str) -> Any:
        if name == "spec":
            raise _SeveralSpecsError(f"this layer is a sum of {len(self._runners)} chains; their specs are layer.specs")
        return super().__getattr__(name)

    @property
    def cores(self) -> tuple[tuple[Tensor, ...], ...]:
        """The core parameters of each term, shapes ``(r_left, out, in, r_right)``."""
        return tuple(tuple(getattr(self, name) for name in names) for names in self.core_names)

    @property
    def chains(self) -> tuple[MPOChain, ...]:
        """Detached copies of the terms as chains."""
        return tuple(
            MPOChain(tuple(core.detach().clone() for core in cores), spec)
            for cores, spec in zip(self.cores, self.specs, strict=True)
        )

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        terms = [MPOChain(cores, spec).to_matrix() for cores, spec in zip(self.cores, self.specs, strict=True)]
        return sum(terms[1:], start=terms[0])

    @property
    def cache(self) -> bool:
        """True if calls without gradients share cached merged cores."""
        return self._runners[0].memory == "fast"

    def entry(self) -> ChainsEntry:
        """The specs of all terms, and whether the layer has a bias."""
        return ChainsEntry(bias=self.bias is not None, terms=[SpecEntry.of(spec) for spec in self.specs])

    @classmethod
    def from_entry(cls, entry: ChainsEntry) -> Self:
        """See :meth:`mpochain.nn.CompressedLayer.from_entry`."""
        out_features, in_features = entry.shape
        with torch.device("meta"):
            return cls(in_features, out_features, terms=[term.spec() for term in entry.terms], bias=entry.bias)

    def form(self) -> str:
        """The specs of all terms."""
        return " + ".join(map(str, self.specs))

    def learning_rate_scales(self) -> dict[str, float]:
        """``in_features / (i_k r_k)`` for the core of site ``k``, ``r_k`` its right bond."""
        return {
            name: self.in_features / (core.shape[2] * core.shape[3])
            for names, cores in zip(self.core_names, self.cores, strict=True)
            for name, core in zip(names, cores, strict=True)
        }

    def central_cores(self) -> tuple[str, ...]:
        """See :meth:`mpochain.nn.CompressedLayer.central_cores`."""
        return tuple(
            central([(name, core.numel()) for name, core in zip(names, cores, strict=True)])
            for names, cores in zip(self.core_names, self.cores, strict=True)
            if len(names) > 1
        )

    def macs(self) -> int:
        """Multiply-adds per input row of a sweep site by site, without folding."""
        return sum(spec.macs() for spec in self.specs)

    def plan(self, batch: int, *, training: bool = False) -> tuple[ContractionPlan, ...]:
        """The contraction plan of each term for ``batch`` input rows.

        Raises:
            ArgumentError: a batch that is not a positive integer.
        """
        batch = check_batch(batch)
        core = self.cores[0][0]
        return tuple(
            runner.plan(batch, training=training, dtype=core.dtype, device=core.device) for runner in self._runners
        )

    def can_reorder(self) -> bool:
        """True: the layer, or one around it, looks features up."""
        return True

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """See :meth:`mpochain.nn.CompressedLayer.factors`; a chain of dims ``(out, 1) | (1, in)`` has them."""
        out, in_ = self.shape
        if len(self.specs) > 1 or (self.spec.out_dims, self.spec.in_dims) != ((out, 1), (1, in_)):
            return None
        left, right = self.cores[0]
        return left.reshape(out, -1), right.reshape(-1, in_)

    def as_linears(self, *, dequantize: bool = False) -> nn.Module:  # noqa: ARG002  # see the base class
        """See :meth:`mpochain.nn.CompressedLayer.as_linears`; a :class:`LinearChain` with copies of the cores."""
        layer = LinearChain.from_cores(list(zip(self.specs, self.cores, strict=True)), self.bias)
        return layer.train(self.training)

    def _kept_from(self) -> Sequence[Tensor] | None:
        if self._modules:  # it is parametrised
            return super()._kept_from()
        # The generator over all submodules takes longer than a small product.
        return [core for name, core in self._parameters.items() if name != "bias" and core is not None]

    def _forget(self) -> None:
        super()._forget()
        for runner in self._runners:
            runner.forget()

    def _set_execution(self, cache: bool, autotune: bool | None) -> None:
        # The runners cache the merged cores, since these depend on the plans.
        for runner in self._runners:
            runner.set_execution("fast" if cache else "compact", autotune)

    def precompile(self, batch_sizes: Iterable[int] = (1, 32, 2048)) -> MPOLinear:
        """Plan now for these numbers of input rows, for inference and training, and return the layer.

        With ``autotune=True`` the plans are measured; see :func:`mpochain.set_execution`.

        Raises:
            ArgumentError: a batch size below 1.
        """
        for batch in [batch_sizes] if isinstance(batch_sizes, int) else batch_sizes:
            for training in (False, True):
                self.plan(batch, training=training)
        return self

    def compact(self, x: Tensor) -> Tensor:
        """See :meth:`mpochain.nn.CompressedLayer.compact`."""
        y: Tensor | None = None
        rows = x if x.ndim == 2 else x.reshape(-1, self.in_features)
        keeps = not is_managed(self)
        for runner, cores in zip(self._runners, self.cores, strict=True):
            y = runner(rows, cores, self.bias if y is None else None, y, keeps=keeps)
        assert y is not None
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in nn.Linear, which callers may use
        """``(..., in_features)`` to ``(..., out_features)``; called as ``layer(x)`` or ``layer(input=x)``.

        Overrides the base class for speed: a call with an input shape seen before runs a bound plan without any checks.

        Raises:
            ShapeError: the last axis of ``input`` is not ``in_features``.
        """
        shape = input.shape
        bindable = not (
            torch.compiler.is_compiling()
            or torch.is_grad_enabled()
            or torch._C._are_functorch_transforms_active()
            or "_is_fsdp_managed_module" in self.__dict__  # is_managed(self), whose call would take longer
        )
        if bindable:
            bound = self._runners[0].bound.get(shape)
            if bound is not None:
                # Avoids Module.__getattr__ too, which costs more than a small product.
                y = bound(input, self._parameters)
                if y is not None:
                    return y
        if type(input) is not Tensor and is_proxy(input):
            return leaf_of_graph(self, input)
        # torch.jit.trace warns of conditions on sizes; products in the trace check them too.
        if not is_recorded() and (not shape or shape[-1] != self.in_features):
            raise ShapeError(f"{self} got x of shape {tuple(input.shape)}; expected (..., {self.in_features})")
        y = self.compact(input)
        if bindable and len(self._runners) == 1 and not is_traced():
            rows = input if len(shape) == 2 else input.reshape(-1, self.in_features)
            self._runners[0].bind(rows, shape, self.core_names[0], self._parameters)
        return y

    def extra_repr(self) -> str:
        """Features, specs and bias, for ``print(layer)``."""
        return f"{self.in_features} -> {self.out_features}, {self.form()}, bias={self.bias is not None}"
