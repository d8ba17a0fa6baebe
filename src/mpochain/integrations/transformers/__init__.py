"""Connection with transformers: ``from_pretrained``, ``save_pretrained``, ``push_to_hub`` and Trainer.

Once :func:`register` was called, which ``import mpochain`` does, transformers reads folders of compressed models and
writes them. :class:`HealingTrainer` trains them.
"""

from typing import TYPE_CHECKING, Any

from mpochain.integrations.transformers.quantizer import MpochainConfig, MpochainQuantizer, register

if TYPE_CHECKING:
    from mpochain.integrations.transformers.healing import HealingTrainer

__all__ = ["HealingTrainer", "MpochainConfig", "MpochainQuantizer", "register"]


def __getattr__(name: str) -> Any:
    # On first use, since importing Trainer takes seconds.
    if name == "HealingTrainer":
        from mpochain.integrations.transformers.healing import HealingTrainer

        return HealingTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
