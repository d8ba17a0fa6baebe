"""Quantizer of transformers that puts compressed layers in place before a model's weights are loaded.

transformers calls a class that changes a model before or after the loading of its weights a quantizer, whatever it
does. Modules that need torch are imported where they are used, since this file is imported with transformers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

if TYPE_CHECKING:
    from mpochain.checkpoint.configuration import Description
    from mpochain.integrations.transformers.loading import LoadedParts

__all__ = ["MpochainConfig", "MpochainQuantizer", "register"]

_METHOD = "mpochain"


class MpochainConfig(QuantizationConfigMixin):
    """Description of the compressed layers of a model, as ``config.json`` of its folder states it.

    Args:
        quant_method: always ``"mpochain"``.
        fields: those of the description.

    Raises:
        CheckpointError: the description is damaged, or of a newer version.
    """

    def __init__(self, quant_method: str = _METHOD, **fields: Any) -> None:
        from mpochain.checkpoint.configuration import described_layers

        self.quant_method: Any = quant_method
        where = "config.json: quantization_config"
        self.description: Description = described_layers({"quant_method": quant_method, **fields}, where)

    def to_dict(self) -> dict[str, Any]:
        """The description as plain data."""
        return self.description.model_dump(mode="json", exclude_unset=True)


class MpochainQuantizer(HfQuantizer):
    """Puts the compressed layers of a folder in place, lets transformers load them, and checks them."""

    requires_calibration = True  # it reads compressed models, and compresses none
    quantization_config: MpochainConfig
    _loaded: LoadedParts

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the file of tensors; this is the only call before transformers looks for it."""
        config.transformers_weights = self.quantization_config.description.tensors
        return config

    # Releases before 5.20 give no model, later ones do.
    def update_weight_conversions(self, weight_conversions: Any, model: Any = None) -> list[Any]:  # noqa: ARG002
        """The tensors have the names of the model's own state dict, now or in an earlier version of this library."""
        from transformers.core_model_loading import WeightRenaming

        return [WeightRenaming(f"^{re.escape(name)}$", new) for name, new in self._loaded.renamed.items()]

    def _process_model_before_weight_loading(
        self, model: Any, *, dtype: Any = None, checkpoint_files: list[str] | None = None, **_: Any
    ) -> Any:
        from mpochain.integrations.transformers.loading import put_layers_in

        files = [Path(file) for file in checkpoint_files or ()]
        self._loaded = put_layers_in(model, self.quantization_config.description, files, dtype)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        from mpochain.integrations.transformers.loading import finish

        # What the model is made of is stated when it is saved, so that nothing here can become outdated.
        remove: Any = self.remove_quantization_config
        remove(model)
        finish(model, self._loaded)
        return model

    def is_serializable(self) -> bool:
        """True: models can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: compressed layers are trained like dense ones."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True, so that Trainer takes the model without adapters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: ``torch.compile`` takes compressed layers."""
        return True


def register() -> None:
    """Let transformers read and write compressed models; calling it again does nothing."""
    from mpochain.integrations.transformers.saving import replace_methods

    if _METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(_METHOD)(MpochainConfig)
        register_quantizer(_METHOD)(MpochainQuantizer)
    replace_methods()
