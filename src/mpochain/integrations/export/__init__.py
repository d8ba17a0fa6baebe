"""Export of compressed models to files that other programs run: ONNX, ``torch.export``, AOTInductor."""

from mpochain.integrations.export.captured import Captured
from mpochain.integrations.export.exporting import Exported, export, require_exportable
from mpochain.integrations.export.format import Format
from mpochain.integrations.export.formats import FORMATS
from mpochain.integrations.export.sampling import Sample

__all__ = ["FORMATS", "Captured", "Exported", "Format", "Sample", "export", "require_exportable"]
