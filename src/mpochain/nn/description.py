"""Compressed layers as plain data: the entries that stand in the files of checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import nn

from mpochain.errors import SpecError
from mpochain.nn.embeddings import EntangledEmbedding, MPOEmbedding, RowLinear, TokenTrainEmbedding
from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.linear import MPOLinear
from mpochain.nn.permuted import PermutedLinear
from mpochain.nn.sum import SumLinear

__all__ = [
    "ChainsEntry",
    "EmbeddingEntry",
    "EntangledEntry",
    "InterpolativeEntry",
    "LayerEntry",
    "PermutedEntry",
    "RowsEntry",
    "SpecEntry",
    "SumEntry",
    "TokenTrainEntry",
    "describe",
    "read",
]

Size = Annotated[int, Field(ge=1, le=1 << 31, strict=True)]
# More sites, terms or parts than anyone has use for, few enough to plan at once.
_MOST_SITES, _MOST_TERMS, _MOST_PARTS = 16, 16, 4
Dims = Annotated[list[Size], Field(max_length=_MOST_SITES)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Matrix(_Entry):
    out_features: Size
    in_features: Size

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.out_features, self.in_features


class SpecEntry(_Matrix):
    """A chain's spec."""

    out_dims: Dims
    in_dims: Dims
    bonds: Dims


class ChainsEntry(_Entry):
    """An ``MPOLinear``."""

    kind: Literal["chains"]
    bias: bool
    terms: Annotated[list[SpecEntry], Field(min_length=1, max_length=_MOST_TERMS)]

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.terms[0].shape


class InterpolativeEntry(_Matrix):
    """An ``InterpolativeLinear``."""

    kind: Literal["interpolative"]
    rank: Size
    bias: bool


_Part = Annotated[ChainsEntry | InterpolativeEntry, Field(discriminator="kind")]


class SumEntry(_Entry):
    """A ``SumLinear``; its parts are no sums themselves: nothing is nested."""

    kind: Literal["sum"]
    parts: Annotated[list[_Part], Field(min_length=2, max_length=_MOST_PARTS)]

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.parts[0].shape


class PermutedEntry(_Entry):
    """A ``PermutedLinear``."""

    kind: Literal["permuted"]
    rows: bool
    columns: bool
    bias: bool
    inner: ChainsEntry

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.inner.shape


_Padding = Annotated[int, Field(ge=0, strict=True)] | None


class EmbeddingEntry(_Entry):
    """An ``MPOEmbedding``."""

    kind: Literal["embedding"]
    padding: _Padding
    table: Annotated[ChainsEntry | PermutedEntry, Field(discriminator="kind")]

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.table.shape


class EntangledEntry(_Matrix):
    """An ``EntangledEmbedding``."""

    kind: Literal["entangled"]
    units: Literal["digits", "own", "index"]
    unit_count: Size
    ranks: Size
    dims: Annotated[list[Size], Field(min_length=2, max_length=_MOST_SITES)]
    shared: bool
    coefficients: bool
    norm: bool
    padding: _Padding


class TokenTrainEntry(_Matrix):
    """A ``TokenTrainEmbedding``."""

    kind: Literal["token_train"]
    dims: Annotated[list[Size], Field(min_length=1, max_length=_MOST_SITES)]
    max_bond: Size
    padding: _Padding


class RowsEntry(_Entry):
    """A ``RowLinear``."""

    kind: Literal["rows"]
    table: Annotated[EntangledEntry | TokenTrainEntry, Field(discriminator="kind")]

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.table.shape


LayerEntry = (
    ChainsEntry
    | EmbeddingEntry
    | EntangledEntry
    | InterpolativeEntry
    | PermutedEntry
    | RowsEntry
    | SumEntry
    | TokenTrainEntry
)
_LAYER: TypeAdapter[LayerEntry] = TypeAdapter(Annotated[LayerEntry, Field(discriminator="kind")])


def read(description: Any, name: str) -> LayerEntry:
    """The entry of a description that may come from a file that nobody has looked at.

    Args:
        description: from :func:`describe`, or whatever a file holds.
        name: of the layer, for errors.

    Raises:
        SpecError: data that describes no layer, naming the field.

    Example:
        >>> read({"kind": "interpolative", "out_features": 3, "in_features": 4, "rank": 2, "bias": False}, "up").shape
        (3, 4)
    """
    try:
        return _LAYER.validate_python(description)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        raise SpecError(f"{name}.{where}: {first['msg']}" if where else f"{name}: {first['msg']}") from error


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
