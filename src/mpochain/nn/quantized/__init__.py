"""Layers whose tensors are held in 8-, 4-, 3- or 2-bit codes."""

from mpochain.nn.quantized.coded import CodedTensor
from mpochain.nn.quantized.latent import latent_codes, stored_codes
from mpochain.nn.quantized.layer import QuantizedLayer
from mpochain.nn.quantized.linear import QuantizedLinear
from mpochain.nn.quantized.parts import QuantizedParts
from mpochain.nn.quantized.tensors import QuantizedTensors

__all__ = [
    "CodedTensor",
    "QuantizedLayer",
    "QuantizedLinear",
    "QuantizedParts",
    "QuantizedTensors",
    "latent_codes",
    "stored_codes",
]
