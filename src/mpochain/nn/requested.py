"""Chain specs from the constructor arguments of a layer: dims, bonds, a spec or terms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpochain import shapes
from mpochain.errors import ArgumentError, SpecError
from mpochain.spec import ChainSpec

__all__ = ["requested_specs"]


def requested_specs(
    shape: tuple[int, ...],
    max_bond: int | None,
    sites: int | None,
    out_dims: Iterable[int] | None,
    in_dims: Iterable[int] | None,
    spec: ChainSpec | None,
    terms: Sequence[ChainSpec] | None,
) -> tuple[ChainSpec, ...]:
    """One spec per term, from the arguments of :class:`mpochain.MPOLinear`, for a weight of ``shape (out, in)``.

    Raises:
        ArgumentError: the arguments contradict each other.
        SpecError: the dims do not multiply to the features.
    """
    out_features, in_features = shape
    dims_given = out_dims is not None or in_dims is not None
    ways = [spec is not None, terms is not None, dims_given or max_bond is not None or sites is not None]
    if sum(ways) > 1:
        raise ArgumentError("give one of: spec=; terms=; or out_dims=, in_dims= (or sites=) and max_bond=")
    if dims_given and sites is not None:
        raise ArgumentError("sites= is for the default dims; leave it out when you give out_dims= and in_dims=")
    specs: tuple[ChainSpec, ...]
    if terms is not None:
        specs = (terms,) if isinstance(terms, ChainSpec) else tuple(terms)
    elif spec is not None:
        specs = (spec,)
    else:
        if (out_dims is None) != (in_dims is None):
            raise ArgumentError("give out_dims= and in_dims= together")
        if out_dims is not None and in_dims is not None:
            specs = (ChainSpec(out_dims, in_dims, max_bond),)
        else:
            out, in_ = (shapes.default_dims(size, 2 if sites is None else sites) for size in shape)
            specs = (ChainSpec(out, in_, max_bond, out_features=out_features, in_features=in_features),)
    if not specs:
        raise ArgumentError("terms= needs at least one spec")
    for term in specs:
        if not isinstance(term, ChainSpec):
            raise ArgumentError(f"expected a ChainSpec, got {type(term).__name__}")
        if term.shape != (out_features, in_features):
            raise SpecError(
                f"out_dims {term.out_dims} and in_dims {term.in_dims} make a {term.shape} matrix, but the layer is "
                f"{in_features} -> {out_features} with weight ({out_features}, {in_features}); "
                f"try out_dims={shapes.balanced(out_features, term.sites)}, "
                f"in_dims={shapes.balanced(in_features, term.sites)}, or ChainSpec(out_features=, in_features=) to pad"
            )
    return specs
