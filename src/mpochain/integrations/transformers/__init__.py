"""Connection with transformers: ``from_pretrained``, ``save_pretrained``, ``push_to_hub`` and Trainer.

Once :func:`register` was called, which ``import mpochain`` does, transformers reads folders of compressed models and
writes them.
"""

from mpochain.integrations.transformers.quantizer import MpochainConfig, MpochainQuantizer, register

__all__ = ["MpochainConfig", "MpochainQuantizer", "register"]
