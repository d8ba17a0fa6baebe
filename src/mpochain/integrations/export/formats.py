"""Table of the formats that models are exported to."""

from __future__ import annotations

from mpochain.integrations.export.aot_inductor import AOTInductor
from mpochain.integrations.export.exported_program import ExportedProgram
from mpochain.integrations.export.format import Format
from mpochain.integrations.export.onnx_file import OnnxFile

__all__ = ["FORMATS"]

# All formats by name.
FORMATS: dict[str, Format] = {format_.name: format_ for format_ in (OnnxFile(), ExportedProgram(), AOTInductor())}
