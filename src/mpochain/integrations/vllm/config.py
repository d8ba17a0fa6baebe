"""Quantisation configuration of vLLM for compressed models, made of the description in ``config.json``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from mpochain.checkpoint.configuration import METHOD, Description, described_layers
from mpochain.errors import ArgumentError
from mpochain.integrations.vllm.folder import REMEDY, require_intact, require_servable
from mpochain.integrations.vllm.methods import CompressedLinearMethod, CompressedTableMethod
from mpochain.integrations.vllm.shards import MARK
from mpochain.nn import LAYERS

__all__ = ["MpochainConfig"]


class _Layers(dict[str, nn.Module]):
    """Layers by name, which are left out of copies of the configuration."""

    def __reduce__(self) -> Any:
        return _Layers, ()


class MpochainConfig(QuantizationConfig):  # type: ignore[misc,unused-ignore]
    """Tells vLLM which method runs each layer of a compressed model.

    Args:
        description: the compressed layers.
    """

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.description = description
        self._layers = _Layers()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MpochainConfig:
        """The configuration of a folder's ``quantization_config``.

        Raises:
            CheckpointError: the description is damaged, or of a newer version.
        """
        return cls(described_layers(config, "config.json: quantization_config"))

    # The revision matters to a hub alone, whose models are not compared.
    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:  # noqa: ARG002
        """Check the model before anything is built; vLLM calls it once it has read the configuration.

        Raises:
            ArgumentError: a model that cannot be served.
            CheckpointError: the folder is damaged. A model from the hub is not compared with its hashes.
        """
        require_servable(self.description, hf_config)
        if Path(model_name).is_dir():
            require_intact(Path(model_name))

    def get_name(self) -> str:
        """The name of the format."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Types in which layers compute."""
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Zero: any GPU."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """No file beside ``config.json``."""
        return []

    def get_checkpoint_weight_mapper(self) -> Any:
        """Names of tensors of compressed layers with a mark, see :data:`mpochain.integrations.vllm.shards.MARK`."""
        from vllm.model_executor.models.utils import WeightsMapper

        names = "|".join(map(re.escape, self.description.layers))
        return WeightsMapper(orig_to_new_regex={re.compile(rf"^({names})\.(.+)$"): rf"\1.\2{MARK}"} if names else {})

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        """The method of a layer; None for what is left to vLLM.

        Raises:
            ArgumentError: more than one process is to share a compressed layer.
        """
        name = prefix.lstrip(".")
        if isinstance(layer, LinearBase):
            names = self._fused(name)
            if not any(part in self.description.layers for part in names):
                return UnquantizedLinearMethod()
            _require_one_process(names[0])
            return CompressedLinearMethod(names, self.description.layers, self._layers, self.description.tied)
        if isinstance(layer, VocabParallelEmbedding):
            if not name and not isinstance(layer, ParallelLMHead):
                name = self._embedding()
            if name in self.description.layers:
                _require_one_process(name)
                entry = self.description.layers[name]
                return CompressedTableMethod(name, entry, self._layers, self.description.tied)
        return None

    def _fused(self, name: str) -> list[str]:
        """Names in the model of the layers that vLLM runs as one."""
        parent, _, leaf = name.rpartition(".")
        if name in self.description.layers or leaf not in self.packed_modules_mapping:
            return [name]
        return [f"{parent}.{part}" for part in self.packed_modules_mapping[leaf]]

    def _embedding(self) -> str:
        """Name of the only compressed embedding; vLLM does not name that of every family."""
        names = [
            name
            for name, entry in self.description.layers.items()
            if (kind := LAYERS.get(str(dict(entry).get("kind")))) is not None and kind.looks_up
        ]
        if len(names) > 1:
            raise ArgumentError(f"vLLM does not tell {' and '.join(names)} apart, which are compressed; {REMEDY}")
        return names[0] if names else ""


def _require_one_process(name: str) -> None:
    parallel = get_current_vllm_config().parallel_config
    if parallel.tensor_parallel_size > 1:
        raise ArgumentError(
            f"{name} is compressed and cannot be split among {parallel.tensor_parallel_size} processes; give "
            f"--tensor-parallel-size 1, with --data-parallel-size for several devices, or {REMEDY}"
        )
