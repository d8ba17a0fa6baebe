"""The shape of a compressed layer as plain data, and a layer without numbers from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import nn

from mpochain.errors import MPOError, SpecError
from mpochain.nn.embeddings import EntangledEmbedding, MPOEmbedding, RowEmbedding, RowLinear, TokenTrainEmbedding
from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.linear import MPOLinear
from mpochain.nn.permuted import PermutedLinear
from mpochain.nn.sum import SumLinear
from mpochain.spec import ChainSpec

__all__ = ["Compressed", "compressed_layers", "describe", "form_of", "skeleton"]

# A layer in place of a dense one.
Compressed = InterpolativeLinear | MPOLinear | PermutedLinear | RowEmbedding | RowLinear | SumLinear

Size = Annotated[int, Field(ge=1, le=1 << 31, strict=True)]
# More sites, terms or parts than anyone has use for, few enough to plan at once.
_MOST_SITES, _MOST_TERMS, _MOST_PARTS = 16, 16, 4
Dims = Annotated[list[Size], Field(max_length=_MOST_SITES)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Spec(_Strict):
    out_dims: Dims
    in_dims: Dims
    bonds: Dims
    out_features: Size
    in_features: Size


class _Chains(_Strict):
    kind: Literal["chains"]
    bias: bool
    terms: Annotated[list[_Spec], Field(min_length=1, max_length=_MOST_TERMS)]


class _Interpolative(_Strict):
    kind: Literal["interpolative"]
    out_features: Size
    in_features: Size
    rank: Size
    bias: bool


_Part = Annotated[_Chains | _Interpolative, Field(discriminator="kind")]


class _Sum(_Strict):
    kind: Literal["sum"]
    parts: Annotated[list[_Part], Field(min_length=2, max_length=_MOST_PARTS)]  # themselves no sums: nothing is nested


class _Permuted(_Strict):
    kind: Literal["permuted"]
    rows: bool
    columns: bool
    bias: bool
    inner: _Chains


_Padding = Annotated[int, Field(ge=0, strict=True)] | None


class _Embedding(_Strict):
    kind: Literal["embedding"]
    padding: _Padding
    table: Annotated[_Chains | _Permuted, Field(discriminator="kind")]


class _Entangled(_Strict):
    kind: Literal["entangled"]
    out_features: Size
    in_features: Size
    units: Literal["digits", "own", "index"]
    unit_count: Size
    ranks: Size
    dims: Annotated[list[Size], Field(min_length=2, max_length=_MOST_SITES)]
    shared: bool
    coefficients: bool
    norm: bool
    padding: _Padding


class _TokenTrain(_Strict):
    kind: Literal["token_train"]
    out_features: Size
    in_features: Size
    dims: Annotated[list[Size], Field(min_length=1, max_length=_MOST_SITES)]
    max_bond: Size
    padding: _Padding


class _Rows(_Strict):
    kind: Literal["rows"]
    table: Annotated[_Entangled | _TokenTrain, Field(discriminator="kind")]


_Layer = _Chains | _Embedding | _Entangled | _Interpolative | _Permuted | _Rows | _Sum | _TokenTrain
_LAYER: TypeAdapter[_Layer] = TypeAdapter(Annotated[_Layer, Field(discriminator="kind")])


def describe(layer: nn.Module) -> dict[str, Any] | None:
    """A compressed layer as JSON-ready data; None for any other module.

    Example:
        >>> describe(InterpolativeLinear(4, 3, 2))
        {'kind': 'interpolative', 'out_features': 3, 'in_features': 4, 'rank': 2, 'bias': True}
    """
    if isinstance(layer, MPOLinear):
        return {
            "kind": "chains",
            "bias": layer.bias is not None,
            "terms": [spec.as_dict() for spec in layer.specs],
        }
    if isinstance(layer, InterpolativeLinear):
        return {
            "kind": "interpolative",
            "out_features": layer.out_features,
            "in_features": layer.in_features,
            "rank": layer.rank,
            "bias": layer.bias is not None,
        }
    if isinstance(layer, SumLinear):
        return {"kind": "sum", "parts": [describe(part) for part in layer.parts]}
    if isinstance(layer, PermutedLinear):
        given = {"rows": layer.place, "columns": layer.columns, "bias": layer.bias}
        return {
            "kind": "permuted",
            **{name: each is not None for name, each in given.items()},
            "inner": describe(layer.inner),
        }
    if isinstance(layer, MPOEmbedding):
        return {"kind": "embedding", "padding": layer.padding_idx, "table": describe(layer.table)}
    if isinstance(layer, EntangledEmbedding):
        return {
            "kind": "entangled",
            "out_features": layer.out_features,
            "in_features": layer.in_features,
            "units": layer.source,
            "unit_count": layer.unit_count,
            "ranks": layer.ranks,
            "dims": list(layer.dims),
            "shared": layer.shared,
            "coefficients": layer.coefficients is not None,
            "norm": layer.scale is not None,
            "padding": layer.padding_idx,
        }
    if isinstance(layer, TokenTrainEmbedding):
        return {
            "kind": "token_train",
            "out_features": layer.out_features,
            "in_features": layer.in_features,
            "dims": list(layer.dims),
            "max_bond": max(layer.bonds, default=1),
            "padding": layer.padding_idx,
        }
    if isinstance(layer, RowLinear):
        return {"kind": "rows", "table": describe(layer.table)}
    return None


def form_of(layer: nn.Module) -> str:
    """A compressed layer in a few words, for tables.

    Example:
        >>> form_of(InterpolativeLinear(4, 3, 2)), form_of(MPOLinear(8, 6, out_dims=(2, 3), in_dims=(2, 4), max_bond=2))
        ('rank 2, interpolative', '6x8 (2,3)|(2,4) bonds (2), 32 parameters')
    """
    if isinstance(layer, InterpolativeLinear):
        return f"rank {layer.rank}, interpolative"
    if isinstance(layer, MPOLinear):
        return " + ".join(map(str, layer.specs))
    if isinstance(layer, SumLinear):
        return " + ".join(map(form_of, layer.parts))
    if isinstance(layer, PermutedLinear):
        return f"{form_of(layer.inner)}, permuted"
    if isinstance(layer, MPOEmbedding | RowLinear):
        return form_of(layer.table)
    if isinstance(layer, EntangledEmbedding):
        dims = "x".join(map(str, layer.dims))
        return f"{layer.unit_count} units ({layer.source}), products of {dims}, rank {layer.ranks}"
    if isinstance(layer, TokenTrainEmbedding):
        return f"a train of {'x'.join(map(str, layer.dims))} for each row, bonds {layer.bonds}"
    return "dense"


def compressed_layers(model: nn.Module) -> dict[str, Compressed]:
    """Every compressed layer of a model by its name; what is within another one is not listed.

    Example:
        >>> parts = InterpolativeLinear(4, 3, 2), MPOLinear(4, 3, max_bond=1, bias=False)
        >>> list(compressed_layers(nn.Sequential(SumLinear(parts), nn.ReLU(), nn.Linear(3, 2))))
        ['0']
    """
    found: dict[str, Compressed] = {}
    within: set[nn.Module] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, Compressed) and layer not in within:
            found[name] = layer
            within.update(layer.modules())
    return found


def skeleton(description: Any, shape: tuple[int, int] | None, name: str) -> Compressed:
    """The layer of a description on the meta device: nothing is allocated, whatever the description says.

    Args:
        description: from :func:`describe`, or from a file that nobody has looked at.
        shape: ``(out_features, in_features)`` that it must have; None for whichever it says.
        name: of the layer, for errors.

    Raises:
        SpecError: data that describes no layer, or one of another shape, naming the field.

    Example:
        >>> description = {"kind": "interpolative", "out_features": 3, "in_features": 4, "rank": 2, "bias": False}
        >>> skeleton(description, (3, 4), "up").rows.device
        device(type='meta')
    """
    try:
        found = _LAYER.validate_python(description)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        raise SpecError(f"{name}.{where}: {first['msg']}" if where else f"{name}: {first['msg']}") from error
    return _built(found, shape or _shape(found), name)


def _built(found: _Layer, shape: tuple[int, int], name: str) -> Compressed:
    if isinstance(found, _Embedding):
        table = _built(found.table, shape, f"{name}.table")
        assert isinstance(table, MPOLinear | PermutedLinear)
        try:
            return MPOEmbedding.of(table, found.padding)
        except MPOError as error:
            raise SpecError(f"{name}: {error}") from error
    if isinstance(found, _Rows):
        return RowLinear(_rows(found.table, shape, f"{name}.table"))
    if isinstance(found, _Entangled | _TokenTrain):
        return _rows(found, shape, name)
    if isinstance(found, _Sum):
        if sum(part.bias for part in found.parts) > 1:
            raise SpecError(f"{name}.parts: only one part of a sum may have a bias")
        return SumLinear([_made(part, shape, f"{name}.parts.{k}") for k, part in enumerate(found.parts)])
    if isinstance(found, _Permuted):
        if not (found.rows or found.columns):
            raise SpecError(f"{name}: a permuted layer has an order of its rows, of its columns, or both")
        if found.inner.bias:
            raise SpecError(f"{name}.inner: the bias of a permuted layer is its own")
        inner = _made(found.inner, shape, f"{name}.inner")
        assert isinstance(inner, MPOLinear)
        rows, columns = (torch.empty(size, dtype=torch.int32, device="meta") for size in shape)
        return PermutedLinear(
            inner,
            rows=rows if found.rows else None,
            columns=columns if found.columns else None,
            bias=torch.empty(shape[0], device="meta") if found.bias else None,
        )
    return _made(found, shape, name)


def _shape(found: _Layer) -> tuple[int, int]:
    if isinstance(found, _Sum):
        return _shape(found.parts[0])
    if isinstance(found, _Permuted):
        return _shape(found.inner)
    if isinstance(found, _Embedding | _Rows):
        return _shape(found.table)
    part = found.terms[0] if isinstance(found, _Chains) else found
    return part.out_features, part.in_features


def _rows(found: _Entangled | _TokenTrain, shape: tuple[int, int], name: str) -> RowEmbedding:
    _require_shape(found, shape, name)
    rows, columns, padding = found.out_features, found.in_features, found.padding
    try:
        with torch.device("meta"):
            if isinstance(found, _TokenTrain):
                return TokenTrainEmbedding(rows, columns, found.max_bond, dims=found.dims, padding_idx=padding)
            return EntangledEmbedding(
                rows,
                columns,
                order=len(found.dims),
                ranks=found.ranks,
                units=found.units if found.units != "index" else torch.empty(rows, len(found.dims), dtype=torch.int32),
                unit_count=found.unit_count,
                dims=found.dims,
                shared=found.shared,
                coefficients=found.coefficients,
                norm=found.norm,
                padding_idx=padding,
            )
    except (SpecError, RuntimeError) as error:  # torch has no tensors of sizes beyond any memory, on no device
        raise SpecError(f"{name}: {error}") from error


def _require_shape(part: _Entangled | _Interpolative | _Spec | _TokenTrain, shape: tuple[int, int], name: str) -> None:
    if (part.out_features, part.in_features) != shape:
        raise SpecError(
            f"{name} is a {part.out_features}x{part.in_features} matrix, but the layer that it replaces is "
            f"{shape[0]}x{shape[1]}"
        )


def _made(found: _Chains | _Interpolative, shape: tuple[int, int], name: str) -> MPOLinear | InterpolativeLinear:
    for part in found.terms if isinstance(found, _Chains) else [found]:
        _require_shape(part, shape, name)
    try:
        with torch.device("meta"):
            if isinstance(found, _Interpolative):
                return InterpolativeLinear(found.in_features, found.out_features, found.rank, bias=found.bias)
            terms = [ChainSpec.from_dict(each.model_dump()) for each in found.terms]
            return MPOLinear(shape[1], shape[0], terms=terms, bias=found.bias)
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from error
