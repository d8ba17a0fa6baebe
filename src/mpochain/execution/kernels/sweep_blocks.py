"""Sizes of sweeps over two or three cores, and of the blocks in which a GPU computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpochain.planning import Schedule

__all__ = ["Blocks", "Sizes", "blocks_for"]

# Smallest side of a product that tensor cores compute.
_SIDE = 16
# Largest blocks, in bytes: of a core, of a state and of the sums. Compiled for sm_90 and sm_80, programs with such
# blocks fit into registers and shared memory.
_BLOCK_BYTES = 32768
# Out entries of the first core in a block, at most: each block reads the rows again.
_MOST_OUT = 32


@dataclass(frozen=True)
class Sizes:
    """A sweep from one end of the chain to the other; core a meets the rows first, then b if there is one, then c.

    Attributes:
        ins: in dims of a, b and c; 1 for a missing b.
        outs: out dims of a, b and c.
        bonds: bonds between a and b and between b and c; equal for a missing b.
        sites: number of cores, 2 or 3.
        from_left: whether a is the leftmost core; otherwise it is the rightmost.
    """

    ins: tuple[int, int, int]
    outs: tuple[int, int, int]
    bonds: tuple[int, int]
    sites: int
    from_left: bool

    @classmethod
    def of(cls, schedule: Schedule) -> Sizes | None:
        """The sizes of a schedule; None if it does not sweep over two or three cores from end to end."""
        order = [step.site for step in schedule.sweeps]
        count = len(order)
        if count not in (2, 3) or order not in (list(range(count)), list(range(count - 1, -1, -1))):
            return None
        shapes = list(schedule.spec.core_shapes)
        for merge in schedule.merges:
            shapes[merge.position : merge.position + 2] = [merge.result]
        from_left = order[0] == 0
        ordered = [shapes[site] for site in order]
        bonds = [shape[3] if from_left else shape[0] for shape in ordered[:-1]]
        if count == 2:
            ordered.insert(1, (1, 1, 1, 1))
            bonds *= 2
        (_, out_a, in_a, _), (_, out_b, in_b, _), (_, out_c, in_c, _) = ordered
        return cls((in_a, in_b, in_c), (out_a, out_b, out_c), (bonds[0], bonds[1]), count, from_left)

    @classmethod
    def from_list(cls, numbers: Sequence[int]) -> Sizes:
        """The inverse of :meth:`as_list`."""
        a, b, c, d, e, f, g, h, sites, from_left = numbers
        return cls((a, b, c), (d, e, f), (g, h), sites, bool(from_left))

    def as_list(self) -> list[int]:
        """The sizes as plain integers, which are arguments of an operator."""
        return [*self.ins, *self.outs, *self.bonds, self.sites, int(self.from_left)]

    def transposed(self) -> Sizes:
        """The sweep with in and out dims exchanged."""
        return Sizes(self.outs, self.ins, self.bonds, self.sites, self.from_left)

    def axis_strides(self, dims: tuple[int, int, int]) -> tuple[int, int, int]:
        """Strides of the axes of a, b and c in a contiguous row."""
        a, b, c = dims
        return (b * c, c, 1) if self.from_left else (1, a, a * b)


@dataclass(frozen=True)
class Blocks:
    """Sizes of the blocks of a program, all of them powers of two: rows, and the axes of the cores."""

    rows: int
    ins: tuple[int, int, int]
    outs: tuple[int, int, int]
    bonds: tuple[int, int]


def blocks_for(sizes: Sizes, element_bytes: int) -> Blocks | None:
    """The blocks for a sweep; None if they are too large for the chip.

    Only the out axis of core a and the in axis of core c are split. All others are in one block.

    Example:
        >>> blocks_for(Sizes((64, 1, 64), (64, 1, 64), (16, 16), 2, False), 2)
        Blocks(rows=1, ins=(64, 1, 16), outs=(16, 1, 64), bonds=(16, 16))
        >>> blocks_for(Sizes((4096, 1, 4096), (1, 1, 4096), (16, 16), 2, False), 2) is None
        True
    """
    ab, bc = map(_power, sizes.bonds)
    in_a, out_c = max(_power(sizes.ins[0]), _SIDE), max(_power(sizes.outs[2]), _SIDE)
    in_b = out_b = 1
    if sizes.sites == 3:
        in_b, out_b = max(_power(sizes.ins[1]), _SIDE // ab), max(_power(sizes.outs[1]), _SIDE // bc)
    least_out = max(_SIDE // ab, 1)
    out_a = max(min(_power(sizes.outs[0]), _MOST_OUT), least_out)
    in_c = min(max(_power(sizes.ins[2]), _SIDE // bc), max(_SIDE // bc, _SIDE // in_b, 1))
    while True:
        # Enough rows for every product of the sweep to have a side of 16.
        rows = max(-(-_SIDE // min(in_c * in_b, out_a * out_b, in_c * out_a if sizes.sites == 3 else _SIDE)), 1)
        elements = (
            in_a * ab * out_a,
            in_b * ab * bc * out_b,
            in_c * bc * out_c,
            rows * in_c * in_b * max(in_a, ab * out_a),
            rows * out_a * out_b * max(in_c * bc, out_c),
        )
        if max(elements) * element_bytes <= _BLOCK_BYTES:
            return Blocks(rows, (in_a, in_b, in_c), (out_a, out_b, out_c), (ab, bc))
        if out_a > least_out:
            out_a //= 2
        elif in_c * bc > _SIDE and in_c > 1:
            in_c //= 2
        else:
            return None


def _power(size: int) -> int:
    """The smallest power of two that is at least the size."""
    return 1 << (size - 1).bit_length()
