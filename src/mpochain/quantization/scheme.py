"""Quantisation scheme of a matrix: bits of each code, size of a group, and whether groups have zero points.

Shapes only: what a matrix of a given size takes in bytes is known before any tensor is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpochain.errors import ArgumentError

__all__ = ["BITS", "Scheme"]

BITS = (8, 4, 3, 2)
"""Bits per code that are offered."""

_SCALE_BYTES, _ZERO_BYTES = 2, 1  # float16 and uint8
_WORD_BITS = 32


@dataclass(frozen=True, order=True)
class Scheme:
    """How a matrix ``(rows, columns)`` is stored in few bits.

    Each row is divided into groups of consecutive columns; if the group size does not divide the columns, the last
    group is shorter. A group has a float16 scale and, unless the scheme is symmetric, a zero point among its codes.

    Attributes:
        bits: bits of each code: 8, 4, 3 or 2.
        group: columns in a group.
        symmetric: whether the zero point is ``2**(bits - 1)`` for all groups, and not stored.

    Raises:
        ArgumentError: bits that are not offered, or a group that is not a positive integer.

    Example:
        >>> Scheme(4).bytes(100, 128)  # 4-bit codes, two scales and two zero points a row
        7000
        >>> Scheme(4).bits_per_weight(100, 128)
        4.375
    """

    bits: int
    group: int = 64
    symmetric: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or self.bits not in BITS:
            raise ArgumentError(f"bits must be one of {', '.join(map(str, BITS))}, got {self.bits!r}")
        if isinstance(self.group, bool) or not isinstance(self.group, int) or self.group < 1:
            raise ArgumentError(f"group must be a positive integer, the columns of a group, got {self.group!r}")
        if not isinstance(self.symmetric, bool):
            raise ArgumentError(f"symmetric must be True or False, got {self.symmetric!r}")

    @property
    def largest_code(self) -> int:
        """``2**bits - 1``."""
        return (1 << self.bits) - 1

    @property
    def middle_code(self) -> int:
        """``2**(bits - 1)``, the zero point of symmetric groups."""
        return 1 << (self.bits - 1)

    def groups(self, columns: int) -> int:
        """Number of groups in a row.

        Example:
            >>> Scheme(4, group=64).groups(130)  # of 64, 64 and 2 columns
            3
        """
        return -(-columns // self.group)

    def words(self, columns: int) -> int:
        """Number of 32-bit words that hold the codes of a row; the bits that are left over are zero.

        Example:
            >>> Scheme(3).words(32), Scheme(3).words(33)
            (3, 4)
        """
        return -(-columns * self.bits // _WORD_BITS)

    def bytes(self, rows: int, columns: int) -> int:
        """Bytes of a stored matrix: packed codes, scales and zero points."""
        per_group = _SCALE_BYTES + (0 if self.symmetric else _ZERO_BYTES)
        return rows * (self.words(columns) * _WORD_BITS // 8 + self.groups(columns) * per_group)

    def bits_per_weight(self, rows: int, columns: int) -> float:
        """Bits of a stored matrix, per entry."""
        return 8 * self.bytes(rows, columns) / (rows * columns)

    def __str__(self) -> str:
        """Bits, group and symmetry in words.

        Example:
            >>> print(Scheme(3, group=32)), print(Scheme(8, symmetric=True))
            3 bits in groups of 32
            8 bits in groups of 64, symmetric
            (None, None)
        """
        return f"{self.bits} bits in groups of {self.group}{', symmetric' if self.symmetric else ''}"
