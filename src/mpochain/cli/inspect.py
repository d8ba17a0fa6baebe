"""``mpochain inspect``: what a checkpoint holds."""

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
    """Print the layers of a compressed model and whether its files are whole; no weights are read into memory."""
    from mpochain.checkpoint import contents
    from mpochain.report import Column, text

    found = contents(folder)
    if as_json:
        print_json(asdict(found) | {"dense_parameters": found.dense_parameters})
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
            for layer in found.layers
        ]
        print(text(columns, rows))
        print()
        print(
            f"{found.model or 'a model of its own'}: {found.parameters:,} parameters, {found.dense_parameters:,} if it "
            f"were dense ({found.parameters / found.dense_parameters:.1%}); {found.bytes:,} bytes, "
            f"{', '.join(found.dtypes)}; tensors {'intact' if found.intact else 'DAMAGED: their sha256 differs'}"
        )
    if not found.intact:
        raise typer.Exit(1)
