"""Designs of a PicoGPT's linear layers: dense, the paper's chains, or controls of equal size."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from mpochain import shapes
from mpochain.errors import ArgumentError, SpecError
from mpochain.spec import ChainSpec

__all__ = ["HEADS", "WIDTH", "Design", "Family", "site_spec"]

WIDTH, HEADS = 128, 4

Family = Literal["dense", "paper", "low rank", "skewed"]

_SITES = {
    (128, 128): ((8, 16), (8, 16)),
    (512, 128): ((8, 8, 8), (4, 4, 8)),
    (128, 512): ((4, 4, 8), (8, 8, 8)),
}

# Size of the small site of skewed chains, which take this factor more multiply-adds than low rank.
_SKEW = 4


def site_spec(out_features: int, in_features: int, max_bond: int | None) -> ChainSpec:
    """Spec of a chain on the paper's sites; for sizes absent from the paper, two balanced sites.

    Example:
        >>> print(site_spec(65, 128, 16))
        65x128 (5,13)|(8,16) bonds (16), 3,968 parameters
    """
    dims = _SITES.get((out_features, in_features))
    if dims is None:
        dims = shapes.balanced(out_features, 2), shapes.balanced(in_features, 2)
    return ChainSpec(*dims, max_bond)


@dataclass(frozen=True)
class Design:
    """Shapes of a PicoGPT's linear layers.

    Attributes:
        family: ``"dense"``; ``"paper"``, chains on the paper's sites; or a control, ``"low rank"`` or ``"skewed"``
            two-site chains. A control gives every linear layer the largest integer bond with at most as many parameters
            as the paper's chain: up to 29 % fewer for a single layer at χ=4, and 5 % fewer for the model.
        max_bond: χ of the paper's chains, which also sets the size of the controls; None for dense.
        width: features of the residual stream; the hidden layer is four times as wide.

    Raises:
        ArgumentError: the family is unknown, or the width is not a positive multiple of 4, the number of heads.
        SpecError: a dense design has a bond, or another design has none.

    Example:
        >>> [Design(family, 16).spec(128, 128).parameters for family in ("paper", "low rank", "skewed")]
        [5120, 5120, 5120]
    """

    family: Family = "dense"
    max_bond: int | None = None
    width: int = WIDTH

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise ArgumentError(f"family must be one of {', '.join(get_args(Family))}, got {self.family!r}")
        if (self.max_bond is None) is not (self.family == "dense"):
            raise SpecError(f"a {self.family} design {'has no' if self.family == 'dense' else 'needs a'} max_bond")
        if isinstance(self.width, bool) or not isinstance(self.width, int) or not 0 < self.width <= 1 << 14:
            raise ArgumentError(f"width must be a positive integer up to {1 << 14}, got {self.width!r}")
        if self.width % HEADS:
            raise ArgumentError(f"width must be a multiple of {HEADS}, got {self.width}")

    def spec(self, out_features: int, in_features: int) -> ChainSpec | None:
        """Spec of the chain for a linear layer of this shape; None for a dense layer."""
        if self.family == "dense":
            return None
        paper = site_spec(out_features, in_features, self.max_bond)
        if self.family == "paper":
            return paper
        if self.family == "low rank":
            rank = max(paper.parameters // (out_features + in_features), 1)
            return shapes.low_rank(out_features, in_features, rank)
        rows = -(-out_features // _SKEW)
        columns = -(-in_features // _SKEW)
        bond = max(paper.parameters // (_SKEW * (rows + columns)), 1)
        return ChainSpec((rows, _SKEW), (_SKEW, columns), bond, out_features=out_features, in_features=in_features)

    def as_dict(self) -> dict[str, Any]:
        """Fields as a dictionary, for JSON."""
        return asdict(self)

    @property
    def shape(self) -> str:
        """Family, and the width of a dense model if it is not the default."""
        narrow = self.family == "dense" and self.width != WIDTH
        return f"dense, width {self.width}" if narrow else self.family

    def __str__(self) -> str:
        if self.family == "dense":
            return self.shape
        return f"χ={self.max_bond}" if self.family == "paper" else f"{self.family} as χ={self.max_bond}"
