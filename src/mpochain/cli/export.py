"""``mpochain export``: a model as one file for ONNX Runtime, ``torch.export`` or AOTInductor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.options import Device, Dtype, Json, Overwrite, print_json, quiet_transformers

__all__ = ["export"]


def export(
    model: Annotated[
        str,
        typer.Argument(help="Dense or compressed model: a folder, a .gguf file, or a name on the Hugging Face hub."),
    ],
    out: Annotated[Path, typer.Option(help="File to write, ending in .onnx, or .pt2 for the other formats.")],
    format: Annotated[  # noqa: A002  # the name of the option
        str,
        typer.Option(
            help="onnx for ONNX Runtime and others, torch for torch.export.load, or aoti for machine code of this kind "
            "of processor, which needs a C++ compiler."
        ),
    ] = "onnx",
    check: Annotated[
        bool,
        typer.Option("--check/--no-check", help="Run the file with three other shapes and compare it with the model."),
    ] = True,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a model as one file that other programs run; compressed layers stay compressed in it."""
    from mpochain.integrations.export import export as write
    from mpochain.integrations.export import require_exportable
    from mpochain.workflows.checks import require_found
    from mpochain.workflows.inputs import read_model

    # Before the model is read, which may take minutes.
    require_exportable(out, format, overwrite=overwrite)
    require_found({"model": model})
    with quiet_transformers():
        language = read_model(model, dtype=dtype or "auto", device=device or "cpu")
        exported = write(language.model, out, format, check=check, overwrite=overwrite)
    if as_json:
        print_json(
            {
                "source": model,
                "file": str(exported.path),
                "format": exported.format,
                "inputs": exported.inputs,
                "outputs": exported.outputs,
                "numbers": exported.numbers,
                "bytes": exported.bytes,
                "difference": exported.difference,
            }
        )
    else:
        print(exported.path)
