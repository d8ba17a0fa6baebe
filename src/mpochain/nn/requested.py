"""What a layer is asked to be, in any of the ways to say it, as specs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpochain import shapes
from mpochain.errors import SpecError
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
    """The specs a layer of ``shape (out, in)`` is asked to have, one for each term; see :class:`mpochain.MPOLinear`.

    Raises:
        SpecError: arguments that contradict each other, or dims that do not multiply to the features.
    """
    out_features, in_features = shape
    dims_given = out_dims is not None or in_dims is not None
    ways = [spec is not None, terms is not None, dims_given or max_bond is not None or sites is not None]
    if sum(ways) > 1:
        raise SpecError("give one of: spec=; terms=; or out_dims=, in_dims= (or sites=) and max_bond=")
    if dims_given and sites is not None:
        raise SpecError("sites= chooses the default dims; leave it out beside out_dims= and in_dims=")
    specs: tuple[ChainSpec, ...]
    if terms is not None:
        specs = (terms,) if isinstance(terms, ChainSpec) else tuple(terms)
    elif spec is not None:
        specs = (spec,)
    else:
        if (out_dims is None) != (in_dims is None):
            raise SpecError("give out_dims= and in_dims= together")
        if out_dims is not None and in_dims is not None:
            specs = (ChainSpec(out_dims, in_dims, max_bond),)
        else:
            out, in_ = (shapes.default_dims(size, 2 if sites is None else sites) for size in shape)
            specs = (ChainSpec(out, in_, max_bond, out_features=out_features, in_features=in_features),)
    if not specs:
        raise SpecError("terms= needs at least one spec")
    for each in specs:
        if not isinstance(each, ChainSpec):
            raise SpecError(f"expected a ChainSpec, got {type(each).__name__}")
        if each.shape != (out_features, in_features):
            raise SpecError(
                f"out_dims {each.out_dims} and in_dims {each.in_dims} make a {each.shape} matrix, but the layer is "
                f"{in_features} -> {out_features} with weight ({out_features}, {in_features}); "
                f"try out_dims={shapes.balanced(out_features, each.sites)}, "
                f"in_dims={shapes.balanced(in_features, each.sites)}, or ChainSpec(out_features=, in_features=) to pad"
            )
    return specs
