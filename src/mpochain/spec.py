"""Chain spec: dims and bonds of a chain of cores, without arrays.

Shape legend of the library:

====================  =====================================================================
``o_k``, ``i_k``      output and input dim of site ``k``
``r_k``               bond between sites ``k - 1`` and ``k``; the end bonds are 1
core ``k``            array of shape ``(r_k, o_k, i_k, r_{k+1})``
matrix                ``(out_features, in_features)``, both multi-indices row-major
====================  =====================================================================
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpochain.errors import ShapeError, SpecError

__all__ = ["ChainSpec"]


def _positive_ints(values: Iterable[Any], name: str) -> tuple[int, ...]:
    """``values`` as a tuple of positive ints; otherwise a SpecError that names the field."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise SpecError(f"{name} must be a sequence of positive integers, got {values!r}")
    result = []
    for value in values:
        try:
            number = operator.index(value)
        except TypeError:
            raise SpecError(f"{name} must hold integers, got {value!r} in {tuple(values)!r}") from None
        if isinstance(value, bool) or number < 1:
            raise SpecError(f"{name} must hold positive integers, got {value!r} in {tuple(values)!r}")
        result.append(number)
    if not result:
        raise SpecError(f"{name} is empty; a chain has at least one site")
    return tuple(result)


def _attainable(sizes: Sequence[int], requested: Sequence[int]) -> tuple[int, ...]:
    """Bonds clipped to the largest ranks that the sites on either side allow."""
    bonds = list(requested)
    left = 1
    for k, size in enumerate(sizes[:-1]):
        left = bonds[k] = min(bonds[k], left * size)
    right = 1
    for k, size in reversed(list(enumerate(sizes))[1:]):
        right = bonds[k - 1] = min(bonds[k - 1], right * size)
    return tuple(bonds)


@dataclass(frozen=True, init=False, repr=False)
class ChainSpec:
    """Dims and bonds of a chain, without its values.

    Bonds are clipped to the attainable maximum: a bond larger than the number of entries on either side of it adds
    parameters, but the chain represents no more matrices. :attr:`requested` stores the bonds before clipping.

    Args:
        out_dims: output dim of each site; their product is the (padded) number of output features.
        in_dims: input dim of each site, as many as ``out_dims``.
        max_bond: upper limit of every bond; ``None`` (and no ``bonds``) means full, lossless bonds.
        bonds: the ``n - 1`` inner bonds, instead of ``max_bond``.
        out_features: rows of the matrix, if fewer than ``prod(out_dims)``; the other rows are zero padding.
        in_features: columns of the matrix, if fewer than ``prod(in_dims)``.

    Raises:
        SpecError: dims or bonds that are not positive integers, sequences of unequal length, or more features than
            the dims hold.

    Example:
        >>> spec = ChainSpec(out_dims=(12, 16, 16), in_dims=(8, 8, 12), max_bond=32)
        >>> spec.shape, spec.parameters
        ((3072, 768), 140288)
        >>> print(ChainSpec((8, 16), (8, 16), max_bond=500))
        128x128 (8,16)|(8,16) bonds (64) clipped from (500), 20,480 parameters
    """

    out_dims: tuple[int, ...]
    in_dims: tuple[int, ...]
    bonds: tuple[int, ...]
    out_features: int
    in_features: int
    requested: tuple[int, ...] | None = field(compare=False)

    def __init__(
        self,
        out_dims: Iterable[int],
        in_dims: Iterable[int],
        max_bond: int | None = None,
        *,
        bonds: Iterable[int] | None = None,
        out_features: int | None = None,
        in_features: int | None = None,
    ) -> None:
        out_dims, in_dims = _positive_ints(out_dims, "out_dims"), _positive_ints(in_dims, "in_dims")
        sites = len(out_dims)
        if len(in_dims) != sites:
            raise SpecError(
                f"out_dims {out_dims} has {sites} sites and in_dims {in_dims} has {len(in_dims)}; "
                "give one dim per site in both (1 is allowed)"
            )
        if max_bond is not None and bonds is not None:
            raise SpecError("give either max_bond or bonds, not both")
        sizes = [o * i for o, i in zip(out_dims, in_dims, strict=True)]
        requested: tuple[int, ...] | None
        if max_bond is not None:
            requested = _positive_ints([max_bond], "max_bond") * (sites - 1)
        elif bonds is not None:
            bonds = tuple(bonds) if isinstance(bonds, Iterable) else bonds
            requested = () if bonds == () else _positive_ints(bonds, "bonds")
            if len(requested) != sites - 1:
                raise SpecError(f"{sites} sites have {sites - 1} inner bonds, got bonds={requested}")
        else:
            requested = None
        full = (math.prod(sizes),) * (sites - 1)
        object.__setattr__(self, "out_dims", out_dims)
        object.__setattr__(self, "in_dims", in_dims)
        object.__setattr__(self, "bonds", _attainable(sizes, full if requested is None else requested))
        object.__setattr__(self, "requested", requested)
        for name, dims, features in (("out", out_dims, out_features), ("in", in_dims, in_features)):
            room = math.prod(dims)
            number = room if features is None else _positive_ints([features], f"{name}_features")[0]
            if number > room:
                raise SpecError(
                    f"{name}_dims {dims} hold {room} features, fewer than {name}_features={number}; "
                    f"choose dims whose product is at least {number}"
                )
            object.__setattr__(self, f"{name}_features", number)

    @classmethod
    def from_core_shapes(
        cls, shapes: Iterable[Sequence[int]], out_features: int | None = None, in_features: int | None = None
    ) -> ChainSpec:
        """The spec of cores with these shapes; bonds above the attainable maximum are clipped.

        Args:
            shapes: ``(r_left, out, in, r_right)`` of each core.
            out_features: see :class:`ChainSpec`.
            in_features: see :class:`ChainSpec`.

        Raises:
            ShapeError: the shapes form no chain.
            SpecError: more features than the dims hold.

        Example:
            >>> spec = ChainSpec((4, 2), (3, 5), max_bond=3)
            >>> ChainSpec.from_core_shapes(spec.core_shapes) == spec
            True
        """
        shapes = [tuple(shape) for shape in shapes]
        if not shapes or any(len(shape) != 4 or 0 in shape for shape in shapes):
            raise ShapeError(f"cores must be arrays (r_left, out, in, r_right) without empty axes, got shapes {shapes}")
        edges = [1, *(shape[3] for shape in shapes)]
        if edges[-1] != 1 or any(shape[0] != edge for shape, edge in zip(shapes, edges, strict=False)):
            raise ShapeError(f"neighbouring cores must share their bond, end bonds must be 1, got shapes {shapes}")
        return cls(
            [shape[1] for shape in shapes],
            [shape[2] for shape in shapes],
            bonds=edges[1:-1],
            out_features=out_features,
            in_features=in_features,
        )

    @property
    def sites(self) -> int:
        """Number of sites (cores)."""
        return len(self.out_dims)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(out_features, in_features)`` of the matrix."""
        return self.out_features, self.in_features

    @property
    def padded_shape(self) -> tuple[int, int]:
        """Shape ``(prod(out_dims), prod(in_dims))`` of the cores' matrix; without padding equal to :attr:`shape`."""
        return math.prod(self.out_dims), math.prod(self.in_dims)

    @property
    def max_bond(self) -> int:
        """The largest bond, 1 for a single site."""
        return max(self.bonds, default=1)

    @property
    def clipped(self) -> bool:
        """True if a requested bond was larger than the attainable maximum."""
        return self.requested is not None and self.requested != self.bonds

    @property
    def core_shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """Shape ``(r_left, out, in, r_right)`` of each core."""
        edges = (1, *self.bonds, 1)
        return tuple(
            (edges[k], o, i, edges[k + 1]) for k, (o, i) in enumerate(zip(self.out_dims, self.in_dims, strict=True))
        )

    @property
    def parameters(self) -> int:
        """Number of elements in all cores."""
        return sum(math.prod(shape) for shape in self.core_shapes)

    @property
    def dense_parameters(self) -> int:
        """Number of elements of the dense matrix."""
        return self.out_features * self.in_features

    def macs(self, *, leftward: bool | None = None) -> int:
        """Multiply-adds per input row of a contraction site by site, without folding.

        Args:
            leftward: True for a sweep from the last site to the first, False for the opposite direction, None for the
                cheaper of the two.

        Example:
            >>> ChainSpec((64, 64), (64, 64), max_bond=16).macs()
            8388608
            >>> ChainSpec((512, 8), (8, 512), max_bond=16).macs()  # skewed: same parameters, an eighth of the work
            1048576
        """
        if leftward is None:
            return min(self.macs(leftward=True), self.macs(leftward=False))
        cores = self.core_shapes[::-1] if leftward else self.core_shapes
        waiting, done, total = self.padded_shape[1], 1, 0
        for left, out, in_, right in cores:
            # A site replaces its input dim and one bond by its output dim and the other bond.
            waiting //= in_
            total += waiting * done * math.prod((left, out, in_, right))
            done *= out
        return total

    def transposed(self) -> ChainSpec:
        """The spec of the transposed matrix: same bonds, in and out exchanged."""
        return ChainSpec(
            self.in_dims, self.out_dims, bonds=self.bonds, out_features=self.in_features, in_features=self.out_features
        )

    def with_bonds(self, max_bond: int | None = None, *, bonds: Iterable[int] | None = None) -> ChainSpec:
        """The same dims and features with other bonds; no argument means full bonds."""
        return ChainSpec(
            self.out_dims,
            self.in_dims,
            max_bond,
            bonds=bonds,
            out_features=self.out_features,
            in_features=self.in_features,
        )

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; the inverse of :meth:`from_dict`."""
        return {
            "out_dims": list(self.out_dims),
            "in_dims": list(self.in_dims),
            "bonds": list(self.bonds),
            "out_features": self.out_features,
            "in_features": self.in_features,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ChainSpec:
        """A spec from :meth:`as_dict`.

        Raises:
            SpecError: unknown or missing keys, or bonds that are not attainable.

        Example:
            >>> spec = ChainSpec((4, 2), (3, 5), max_bond=3)
            >>> ChainSpec.from_dict(spec.as_dict()) == spec
            True
        """
        expected = {"out_dims", "in_dims", "bonds", "out_features", "in_features"}
        if not isinstance(data, Mapping) or set(data) != expected:
            got = sorted(data) if isinstance(data, Mapping) else data
            raise SpecError(f"a stored spec must have the keys {sorted(expected)}, got {got}")
        spec = cls(**data)
        if spec.clipped:
            raise SpecError(f"stored bonds {spec.requested} are not attainable; the dims allow {spec.bonds}")
        return spec

    def __str__(self) -> str:
        dims = "|".join("(" + ",".join(map(str, d)) + ")" for d in (self.out_dims, self.in_dims))
        bonds = ",".join(map(str, self.bonds))
        notes = ""
        if self.clipped:
            notes += f" clipped from ({','.join(map(str, self.requested or ()))})"
        if self.padded_shape != self.shape:
            notes += f" padded to {self.padded_shape[0]}x{self.padded_shape[1]}"
        return f"{self.out_features}x{self.in_features} {dims} bonds ({bonds}){notes}, {self.parameters:,} parameters"

    def __repr__(self) -> str:
        features = ""
        if self.padded_shape != self.shape:
            features = f", out_features={self.out_features}, in_features={self.in_features}"
        return f"ChainSpec(out_dims={self.out_dims}, in_dims={self.in_dims}, bonds={self.bonds}{features})"
