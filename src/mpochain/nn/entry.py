"""Layer entries: validated plain data that describes compressed layers in the configuration of a checkpoint.

Each layer's file defines its entry. An entry holds sizes and options but no weights, so the layer can be built on the
meta device before any memory is allocated.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, ValidationError

from mpochain.errors import ArgumentError
from mpochain.spec import ChainSpec
from mpochain.validation import Validated, parsed, problems

__all__ = [
    "MOST_PARTS",
    "MOST_SITES",
    "MOST_TERMS",
    "Dims",
    "LayerEntry",
    "MatrixEntry",
    "Padding",
    "Size",
    "SpecEntry",
]

Size = Annotated[int, Field(ge=1, le=1 << 31, strict=True)]
# More sites, terms and parts than any layer in use has, but few enough to plan quickly.
MOST_SITES, MOST_TERMS, MOST_PARTS = 16, 16, 4
Dims = Annotated[list[Size], Field(max_length=MOST_SITES)]
Padding = Annotated[int, Field(ge=0, strict=True)] | None


class LayerEntry(Validated):
    """Base class of the entries of compressed layers.

    A subclass adds ``kind``, a ``Literal`` of the layer's own :attr:`~mpochain.nn.CompressedLayer.kind`, and its sizes.
    """

    kind: str

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the weight."""
        raise NotImplementedError

    @classmethod
    def read(cls, data: Any, name: str) -> Self:
        """Validate data from an unchecked file and return the entry.

        Args:
            data: JSON-ready data.
            name: name of the layer in errors.

        Raises:
            ArgumentError: the data is no entry of this layer. The message names the field.
        """
        try:
            return parsed(cls, data)
        except ValidationError as error:
            lines = [f"{name}.{line}" for line in problems(error, cls)]
            raise ArgumentError("; ".join(lines)) from error


class MatrixEntry(LayerEntry):
    """Entry of a layer that states the shape of its matrix directly."""

    out_features: Size
    in_features: Size

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the weight."""
        return self.out_features, self.in_features


class SpecEntry(Validated):
    """A :class:`~mpochain.ChainSpec` within an entry."""

    out_dims: Dims
    in_dims: Dims
    bonds: Dims
    out_features: Size
    in_features: Size

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the chain's matrix."""
        return self.out_features, self.in_features

    def spec(self) -> ChainSpec:
        """The spec.

        Raises:
            SpecError: the dims and bonds describe no chain.
        """
        return ChainSpec.from_dict(self.model_dump())

    @classmethod
    def of(cls, spec: ChainSpec) -> Self:
        """The entry of a spec.

        Example:
            >>> SpecEntry.of(ChainSpec((2, 3), (2, 2), 2)).shape
            (6, 4)
        """
        return cls.model_validate(spec.as_dict())
