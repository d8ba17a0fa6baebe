"""Reshaping between a matrix and the tensor whose axis ``k`` joins the out and in index of site ``k``."""

from __future__ import annotations

from mpochain.arrays import Array, namespace, zeros
from mpochain.errors import SpecError
from mpochain.spec import ChainSpec

__all__ = ["deinterleave", "interleave"]


def interleave(matrix: Array, spec: ChainSpec) -> Array:
    """The tensor ``(o_1 i_1, ..., o_n i_n)`` of a matrix ``(out_features, in_features)``, zero-padded as the spec says.

    Raises:
        SpecError: the matrix is not of ``spec.shape``.
    """
    xp = namespace(matrix)
    if tuple(matrix.shape) != spec.shape:
        padding = "" if spec.shape == spec.padded_shape else f" (padded to {spec.padded_shape})"
        raise SpecError(
            f"the matrix is {tuple(matrix.shape)} but out_dims {spec.out_dims} and in_dims {spec.in_dims} multiply to "
            f"{spec.shape}{padding}; choose dims whose products are the shape, or a ChainSpec with out_features= and "
            "in_features= to pad"
        )
    for axis, missing in enumerate(p - s for p, s in zip(spec.padded_shape, spec.shape, strict=True)):
        if missing:
            shape = [*matrix.shape]
            shape[axis] = missing
            matrix = xp.concat([matrix, zeros(tuple(shape), matrix)], axis=axis)
    n = spec.sites
    split = xp.reshape(matrix, (*spec.out_dims, *spec.in_dims))
    paired = xp.permute_dims(split, tuple(axis for k in range(n) for axis in (k, n + k)))
    return xp.reshape(paired, tuple(o * i for o, i in zip(spec.out_dims, spec.in_dims, strict=True)))


def deinterleave(tensor: Array, spec: ChainSpec) -> Array:
    """The matrix ``(out_features, in_features)`` of a tensor; the inverse of :func:`interleave`, padding cut off."""
    xp = namespace(tensor)
    n = spec.sites
    paired = xp.reshape(tensor, tuple(d for k in range(n) for d in (spec.out_dims[k], spec.in_dims[k])))
    split = xp.permute_dims(paired, (*range(0, 2 * n, 2), *range(1, 2 * n, 2)))
    matrix = xp.reshape(split, spec.padded_shape)
    return matrix[: spec.out_features, : spec.in_features]
