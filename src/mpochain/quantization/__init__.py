"""Quantisation: matrices in 8, 4, 3 or 2 bits an entry, and rounding with feedback of the error, one algorithm a file.

A :class:`Scheme` says how a matrix is stored, and how many bytes that takes. A :class:`Quantized` matrix is its codes
with the scales and zero points of groups of columns.
"""

from mpochain.quantization.codes import Quantized
from mpochain.quantization.grid import grids
from mpochain.quantization.input_feedback import input_feedback
from mpochain.quantization.interpolation import QuantizedInterpolation, interpolation
from mpochain.quantization.nearest import nearest
from mpochain.quantization.packing import packed, unpacked
from mpochain.quantization.scheme import BITS, Scheme
from mpochain.quantization.triangle import InputFactor, OutputFactor, Triangle
from mpochain.quantization.two_sided import two_sided

__all__ = [
    "BITS",
    "InputFactor",
    "OutputFactor",
    "Quantized",
    "QuantizedInterpolation",
    "Scheme",
    "Triangle",
    "grids",
    "input_feedback",
    "interpolation",
    "nearest",
    "packed",
    "two_sided",
    "unpacked",
]
