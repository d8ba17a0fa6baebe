"""Sizes of models in memory and of their files, in bytes."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from mpochain.compression.budget import bytes_in_memory
from mpochain.system.sizes import megabytes

__all__ = ["bytes_of_weights", "warn_of_growth"]

logger = logging.getLogger(__name__)

# A model that takes this many times the size of its file is worth a warning.
_GROWTH = 1.5


def bytes_of_weights(source: str | Path) -> int | None:
    """Bytes of the files with a model's weights: those in a folder, or the file itself; None for a name on the hub."""
    path = Path(source)
    if path.is_file():
        return path.stat().st_size
    for pattern in ("*.safetensors", "*.bin"):
        files = [file for file in path.glob(pattern) if file.is_file()] if path.is_dir() else []
        if files:
            return sum(file.stat().st_size for file in files)
    return None


def warn_of_growth(source: str, model: nn.Module) -> None:
    """Warn if the weights of a model take much more than its file, as those of a quantised file do."""
    stored, size = bytes_of_weights(source), bytes_in_memory(model)
    if stored is None or size <= _GROWTH * stored:
        return
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    can_shrink = any(dtype.itemsize > 2 for dtype in dtypes)
    advice = f"; --dtype bfloat16 makes that {megabytes(size / 2)}" if can_shrink else ""
    logger.warning(
        "%s has %s, but its weights take %s as %s, and the compressed model is saved in this type%s",
        source,
        megabytes(stored),
        megabytes(size),
        names,
        advice,
    )
