"""Names that tensors of compressed layers had in earlier versions, in state dicts and checkpoints."""

from __future__ import annotations

from torch import nn

from mpochain.nn.layer import CompressedLayer

__all__ = ["former_names_in"]


def former_names_in(module: nn.Module) -> dict[str, str]:
    """Present names of tensors in the state dict of a module, by the names that they had in earlier versions.

    Args:
        module: a compressed layer, or a model that contains some.

    Example:
        >>> from mpochain import InterpolativeLinear
        >>> former_names_in(nn.Sequential(InterpolativeLinear(4, 3, 2)))
        {'0.rows': '0.rows.weight', '0.coefficients': '0.coefficients.weight'}
    """
    return {
        f"{prefix}.{former}" if prefix else former: f"{prefix}.{name}" if prefix else name
        for prefix, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, CompressedLayer)
        for former, name in layer.former_names().items()
    }
