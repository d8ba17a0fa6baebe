"""``mpochain convert``: a compressed or GGUF model as a plain folder of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.options import Dtype, quiet_transformers
from mpochain.system.progress import say

__all__ = ["convert"]


def convert(
    model: Annotated[str, typer.Argument(help="Folder, .gguf file, or name on the Hugging Face hub.")],
    out: Annotated[Path, typer.Option(help="Folder for the dense model.")],
    dtype: Dtype = None,
) -> None:
    """Write a model, compressed layers made dense again, as transformers keeps it."""
    from mpochain.language import load_language_model, require_no_model, save_dense

    require_no_model(out)
    with quiet_transformers():
        say(f"reading {model}")
        language = load_language_model(model, dtype=dtype or "auto")
        print(save_dense(language, out))
