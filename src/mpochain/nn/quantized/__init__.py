"""Layers whose tensors are held in 8-, 4-, 3- or 2-bit codes."""

from mpochain.nn.quantized.latent import latent_codes, stored_codes
from mpochain.nn.quantized.layer import QuantizedLayer
from mpochain.nn.quantized.linear import QuantizedLinear
from mpochain.nn.quantized.parts import QuantizedParts

__all__ = ["QuantizedLayer", "QuantizedLinear", "QuantizedParts", "latent_codes", "stored_codes"]
