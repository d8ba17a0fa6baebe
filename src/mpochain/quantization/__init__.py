"""Quantisation: matrices in 8, 4, 3 or 2 bits an entry, and rounding with feedback of the error, one algorithm a file.

A :class:`Scheme` says how a matrix is stored, and how many bytes that takes. A :class:`Quantized` matrix is its codes
with the scales and zero points of groups of columns.
"""

from mpochain.quantization.codes import Quantized
from mpochain.quantization.grid import grids
from mpochain.quantization.nearest import nearest
from mpochain.quantization.packing import packed, unpacked
from mpochain.quantization.scheme import BITS, Scheme

__all__ = ["BITS", "Quantized", "Scheme", "grids", "nearest", "packed", "unpacked"]
