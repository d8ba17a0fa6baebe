"""Compressed models as files: safetensors and JSON, no pickle, nothing allocated before it has been checked.

A folder holds ``config.json`` and the file of tensors that it names by its hash. The tensors are written first and the
configuration last, each by a rename, so a kill at any moment leaves the old model or the new one.
"""

from mpochain.checkpoint.configuration import is_checkpoint
from mpochain.checkpoint.contents import Contents, StoredLayer, contents
from mpochain.checkpoint.loading import load
from mpochain.checkpoint.saving import require_replaceable, save

__all__ = ["Contents", "StoredLayer", "contents", "is_checkpoint", "load", "require_replaceable", "save"]
