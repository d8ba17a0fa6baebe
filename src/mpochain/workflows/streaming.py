"""Memory of a streamed model around its compression: while it is read, evaluated and written."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from mpochain.system.file_pages import file_pages_limited
from mpochain.workflows.recipe import Recipe

__all__ = ["largest_file", "memory_of"]

# Bytes of the model's files that may be in memory.
_PAGES = 256 << 20

# Bytes of the tensors in one file, which are in memory while it is written.
_LARGEST_FILE = 512 << 20


def memory_of(recipe: Recipe, out: Path | None) -> AbstractContextManager[None]:
    """Context in which a streamed model takes little memory while it is read, evaluated and written."""
    if not recipe.stream:
        return nullcontext()
    # Files of a model on the hub are links to others.
    source = Path(recipe.model)
    places = [*(file.resolve() for file in source.glob("*.safetensors")), *([] if out is None else [out])]
    return file_pages_limited(_PAGES, lambda: places)


def largest_file(recipe: Recipe) -> int | None:
    """Bytes of the tensors in one file of the compressed model; None for one file of any size."""
    return _LARGEST_FILE if recipe.stream else None
