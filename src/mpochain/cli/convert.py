"""``mpochain convert``: conversion of a compressed or GGUF model to a dense transformers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.options import Device, Dtype, Json, Overwrite, print_json, quiet_transformers

__all__ = ["convert"]


def convert(
    model: Annotated[
        str, typer.Argument(help="Model to convert: a folder, a .gguf file, or a name on the Hugging Face hub.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the dense model.")],
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a model as a transformers folder, with dense layers in place of compressed ones."""
    from mpochain.language import require_no_model, save_dense
    from mpochain.system.folders import folder_lock
    from mpochain.workflows.checks import require_found
    from mpochain.workflows.inputs import read_model

    require_found({"model": model})
    require_no_model(out, overwrite=overwrite)
    with quiet_transformers(), folder_lock(out):
        language = read_model(model, dtype=dtype or "auto", device=device or "cpu")
        save_dense(language, out, overwrite=overwrite)
    if not as_json:
        print(out)
        return
    parameters = list(language.model.parameters())
    print_json(
        {
            "source": model,
            "folder": str(out),
            "parameters": sum(parameter.numel() for parameter in parameters),
            "bytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        }
    )
