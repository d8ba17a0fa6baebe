"""Export of compressed models to files that other programs run: ONNX, ``torch.export``, AOTInductor."""

from mpochain.integrations.export.exporting import Exported, export, require_exportable
from mpochain.integrations.export.format import Format
from mpochain.integrations.export.formats import FORMATS

__all__ = ["FORMATS", "Exported", "Format", "export", "require_exportable"]
