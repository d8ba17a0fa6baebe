"""Layers without numbers, from their descriptions."""

from __future__ import annotations

from typing import Any

import torch

from mpochain.errors import MPOError, SpecError
from mpochain.nn.compressed import Compressed
from mpochain.nn.description import (
    ChainsEntry,
    EmbeddingEntry,
    EntangledEntry,
    InterpolativeEntry,
    LayerEntry,
    PermutedEntry,
    RowsEntry,
    SumEntry,
    TokenTrainEntry,
    read,
)
from mpochain.nn.embeddings import EntangledEmbedding, MPOEmbedding, RowEmbedding, RowLinear, TokenTrainEmbedding
from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.linear import MPOLinear
from mpochain.nn.permuted import PermutedLinear
from mpochain.nn.sum import SumLinear
from mpochain.spec import ChainSpec

__all__ = ["skeleton"]


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
    found = read(description, name)
    return _built(found, shape or found.shape, name)


def _built(found: LayerEntry, shape: tuple[int, int], name: str) -> Compressed:
    if isinstance(found, EmbeddingEntry):
        table = _built(found.table, shape, f"{name}.table")
        assert isinstance(table, MPOLinear | PermutedLinear)
        try:
            return MPOEmbedding.of(table, found.padding)
        except MPOError as error:
            raise SpecError(f"{name}: {error}") from error
    if isinstance(found, RowsEntry):
        return RowLinear(_rows(found.table, shape, f"{name}.table"))
    if isinstance(found, EntangledEntry | TokenTrainEntry):
        return _rows(found, shape, name)
    if isinstance(found, SumEntry):
        if sum(part.bias for part in found.parts) > 1:
            raise SpecError(f"{name}.parts: only one part of a sum may have a bias")
        return SumLinear([_made(part, shape, f"{name}.parts.{k}") for k, part in enumerate(found.parts)])
    if isinstance(found, PermutedEntry):
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


def _rows(found: EntangledEntry | TokenTrainEntry, shape: tuple[int, int], name: str) -> RowEmbedding:
    _require_shape(found.shape, shape, name)
    rows, columns, padding = found.out_features, found.in_features, found.padding
    try:
        with torch.device("meta"):
            if isinstance(found, TokenTrainEntry):
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


def _require_shape(found: tuple[int, int], shape: tuple[int, int], name: str) -> None:
    if found != shape:
        raise SpecError(
            f"{name} is a {found[0]}x{found[1]} matrix, but the layer that it replaces is {shape[0]}x{shape[1]}"
        )


def _made(
    found: ChainsEntry | InterpolativeEntry, shape: tuple[int, int], name: str
) -> MPOLinear | InterpolativeLinear:
    for part in found.terms if isinstance(found, ChainsEntry) else [found]:
        _require_shape(part.shape, shape, name)
    try:
        with torch.device("meta"):
            if isinstance(found, InterpolativeEntry):
                return InterpolativeLinear(found.in_features, found.out_features, found.rank, bias=found.bias)
            terms = [ChainSpec.from_dict(each.model_dump()) for each in found.terms]
            return MPOLinear(shape[1], shape[0], terms=terms, bias=found.bias)
    except SpecError as error:
        raise SpecError(f"{name}: {error}") from error
