"""Packing of 8-, 4-, 3- and 2-bit codes into 32-bit words.

The codes of a row are a stream of bits, least significant bit first, that is filled up with zeros to whole words. At 8,
4 and 2 bits a word holds exactly 4, 8 or 16 codes, which is the layout "pack-quantized" of compressed-tensors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mpochain.errors import ArgumentError, DTypeError, ShapeError
from mpochain.quantization.scheme import Scheme

__all__ = ["packed", "unpacked"]


def _unit(bits: int) -> tuple[int, int, torch.dtype]:
    """Codes and bytes of the smallest piece of the stream that ends with a byte, and an integer type to shift it in."""
    length = math.lcm(bits, 8)
    return length // bits, length // 8, torch.uint8 if length == 8 else torch.int32


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes ``(rows, columns)`` as words, int32 ``(rows, ceil(columns * bits / 32))``.

    Raises:
        ArgumentError: bits that are not offered, or codes of more bits.
        DTypeError: codes that are not uint8.
        ShapeError: codes that are not a matrix.

    Example:
        >>> packed(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4)  # 0x321
        tensor([[801]], dtype=torch.int32)
    """
    words = Scheme(bits).words
    if codes.dtype != torch.uint8:
        raise DTypeError(f"codes must be uint8, got {codes.dtype}")
    if codes.ndim != 2:
        raise ShapeError(f"codes must be a matrix (rows, columns), got shape {tuple(codes.shape)}")
    rows, columns = codes.shape
    if codes.numel() and int(codes.max()) >> bits:
        raise ArgumentError(f"a {bits}-bit code is at most {(1 << bits) - 1}, got {int(codes.max())}")
    count, length, dtype = _unit(bits)
    units = -(-columns // count)
    filled = torch.nn.functional.pad(codes, (0, units * count - columns)).view(rows, units, count).to(dtype)
    # Built code by code, so that no temporary is larger than the codes.
    unit = torch.zeros(rows, units, dtype=dtype, device=codes.device)
    for position in range(count):
        unit |= filled[..., position] << (position * bits)
    stream = torch.stack([(unit >> (8 * byte) & 0xFF).to(torch.uint8) for byte in range(length)], dim=-1)
    stream = stream.view(rows, units * length)
    size = 4 * words(columns)
    stream = torch.nn.functional.pad(stream, (0, max(size - stream.shape[1], 0)))[:, :size]
    # Flat first: the strides of a single row are not those that a view of larger elements needs.
    return stream.flatten().view(torch.int32).view(rows, size // 4)


def unpacked(words: Tensor, bits: int, columns: int) -> Tensor:
    """Codes ``(rows, columns)``, uint8, of packed words; the inverse of :func:`packed`.

    8-bit codes share the memory of the words.

    Raises:
        ArgumentError: bits that are not offered.
        DTypeError: words that are not int32.
        ShapeError: another number of words than ``columns`` codes have.

    Example:
        >>> unpacked(torch.tensor([[801]], dtype=torch.int32), 4, 3)
        tensor([[1, 2, 3]], dtype=torch.uint8)
    """
    expected = Scheme(bits).words(columns)
    if words.dtype != torch.int32:
        raise DTypeError(f"packed codes must be int32, got {words.dtype}")
    if words.ndim != 2 or words.shape[1] != expected:
        raise ShapeError(
            f"{columns} columns of {bits}-bit codes are packed in words (rows, {expected}), got shape "
            f"{tuple(words.shape)}"
        )
    return _spread(words.contiguous().view(torch.uint8), bits, columns)[:, :columns]


def _spread(stream: Tensor, bits: int, columns: int) -> Tensor:
    """At least ``columns`` codes, one in a byte, of rows of bytes that hold a stream of bits.

    Halves of an integer are moved apart until each byte holds one code: many codes at once in each step.
    """
    if bits == 8:
        return stream
    if bits == 4:
        pairs = stream.to(torch.int16)
        return ((pairs | pairs << 4) & 0x0F0F).view(torch.uint8)
    if bits == 2:
        fours = stream.to(torch.int32)
        fours = (fours | fours << 12) & 0x000F000F
        return ((fours | fours << 6) & 0x03030303).view(torch.uint8)
    units = -(-columns // 8)  # of 8 codes in 3 bytes
    stream = torch.nn.functional.pad(stream, (0, max(3 * units - stream.shape[1], 0)))[:, : 3 * units]
    low, middle, high = stream.unflatten(1, (units, 3)).to(torch.int64).unbind(2)
    eights = low | middle << 8 | high << 16
    eights = (eights | eights << 20) & 0x00000FFF00000FFF
    eights = (eights | eights << 10) & 0x003F003F003F003F
    eights = (eights | eights << 5) & 0x0707070707070707
    # Flat first: without rows the strides are not those that a view of smaller elements needs.
    return eights.flatten().view(torch.uint8).view(stream.shape[0], 8 * units)
