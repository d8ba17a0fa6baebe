"""``mpochain inspect``: layers and sizes of a compressed checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.options import Json, print_json

__all__ = ["inspect"]


def inspect(
    folder: Annotated[Path, typer.Argument(help="Folder of a compressed model.")],
    as_json: Json = False,
) -> None:
    """Print the layers of a compressed model and verify its files, without keeping weights in memory."""
    from mpochain.checkpoint import contents
    from mpochain.errors import ArgumentError
    from mpochain.report import Column, text
    from mpochain.system.sizes import megabytes

    if not folder.is_dir():
        raise ArgumentError(f"there is no folder {str(folder)!r}; name the folder of a compressed model")
    checkpoint = contents(folder)
    if as_json:
        print_json(asdict(checkpoint) | {"dense_parameters": checkpoint.dense_parameters})
    else:
        columns = (
            Column("name", "layer"),
            Column("size", "shape"),
            Column("form", "form"),
            Column("parameters", "parameters", ","),
            Column("share", "of dense", ".2f"),
            Column("bytes", "bytes", ","),
        )
        rows = [
            {
                **asdict(layer),
                "size": f"{layer.shape[0]}x{layer.shape[1]}",
                "share": layer.parameters / (layer.shape[0] * layer.shape[1]),
            }
            for layer in checkpoint.layers
        ]
        print(text(columns, rows))
        print()
        dense, after = checkpoint.dense_parameters, checkpoint.parameters
        state = "intact" if checkpoint.intact else "DAMAGED: SHA-256 mismatch"
        print(
            f"{checkpoint.model or 'custom model'}: {after:,} parameters, {dense:,} when dense "
            f"({after / dense:.1%}); {megabytes(checkpoint.bytes)} of tensors, {', '.join(checkpoint.dtypes)}, {state}"
        )
    if not checkpoint.intact:
        raise typer.Exit(1)
