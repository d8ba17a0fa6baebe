"""Checkpoints of compressed models: safetensors and JSON, no pickle, validated before any memory is allocated.

A checkpoint is a folder with ``config.json`` and a file of tensors, whose name contains its hash. All files of a folder
are replaced in one step, so a process killed at any moment leaves either the old model or the new one.
"""

from mpochain.checkpoint.compressed_tensors import export_compressed_tensors
from mpochain.checkpoint.configuration import is_checkpoint
from mpochain.checkpoint.contents import Contents, StoredLayer, contents
from mpochain.checkpoint.loading import load
from mpochain.checkpoint.placement import Placement, device_named
from mpochain.checkpoint.saving import is_outdated, require_no_other_model, require_replaceable, save, write_checkpoint

__all__ = [
    "Contents",
    "Placement",
    "StoredLayer",
    "contents",
    "device_named",
    "export_compressed_tensors",
    "is_checkpoint",
    "is_outdated",
    "load",
    "require_no_other_model",
    "require_replaceable",
    "save",
    "write_checkpoint",
]
