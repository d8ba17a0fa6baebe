"""Export of models whose layers are in codes to the format of compressed-tensors, which transformers and vLLM read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mpochain.checkpoint.configuration import CONFIG
from mpochain.checkpoint.hugging_face import HuggingFaceModel, described
from mpochain.checkpoint.saving import distinct_tensors, written_by_first
from mpochain.checkpoint.tensor_files import without_shared_memory
from mpochain.errors import ArgumentError, OutputError
from mpochain.nn import QuantizedLinear
from mpochain.nn.dense import is_transposed
from mpochain.quantization import Scheme, packed
from mpochain.surgery.finding import compressed_layers, require_module
from mpochain.surgery.wrappers import without_wrappers
from mpochain.system.faults import output_errors
from mpochain.system.files import write_bytes
from mpochain.system.folders import replaced_together
from mpochain.system.paths import as_path
from mpochain.wording import kind_of

__all__ = ["export_compressed_tensors"]

_TENSORS, _GENERATION, _FORMAT = "model.safetensors", "generation_config.json", "pack-quantized"


def export_compressed_tensors(model: nn.Module, folder: Path | str) -> Path:
    """Write a model of transformers in the format "pack-quantized" of compressed-tensors.

    ``from_pretrained`` of transformers, where the package compressed-tensors is installed, and vLLM read the folder. No
    value is rounded: codes and scales are those of the layers. Add the tokenizer by its ``save_pretrained``.

    compressed-tensors 0.20 does not let transformers read zero points; give ``symmetric=True`` for that.

    Args:
        model: a model whose compressed layers are all :class:`mpochain.nn.QuantizedLinear`; others stay dense.
        folder: created if needed; it must hold no model yet.

    Returns:
        The folder.

    Raises:
        ArgumentError: no model of transformers, no layer in codes, a compressed layer of another kind, or one that the
            format has no place for.
        OutputError: the folder holds a model, or cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=30, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
        >>> scheme = Scheme(4, group=32, symmetric=True)
        >>> model.model.layers[0].mlp.up_proj = QuantizedLinear(32, 32, scheme, bias=False)
        >>> with TemporaryDirectory() as parent:
        ...     sorted(file.name for file in export_compressed_tensors(model, Path(parent) / "out").iterdir())
        ['config.json', 'generation_config.json', 'model.safetensors']
    """
    require_module(model)
    folder = as_path(folder, "folder")
    with without_wrappers(model) as plain, written_by_first(plain) as writes:
        if not writes:
            return folder
        description = described(plain)
        if description is None:
            raise ArgumentError(
                f"{kind_of(plain)} is no model of transformers, whose format this is; use mpochain.save"
            )
        layers = _layers(plain, description)
        if (folder / CONFIG).exists():
            raise OutputError(f"{folder} holds a model, whose {CONFIG} would be replaced; name another folder")
        config = {
            **description["config"],
            "architectures": [description["name"]],
            "quantization_config": _quantization(layers),
        }
        with replaced_together(folder) as new, output_errors(folder):
            save_file(without_shared_memory(_stored(plain, layers)), new / _TENSORS, metadata={"format": "pt"})
            for name, fields in ((CONFIG, config), (_GENERATION, description["generation"])):
                if fields is not None:
                    write_bytes(new / name, (json.dumps(fields, indent=1) + "\n").encode())
    return folder


def _layers(model: nn.Module, description: dict[str, Any]) -> dict[str, QuantizedLinear]:
    """The layers in codes by name, after a check that the format can hold the model."""
    fields = description["name"], description["config"], description["generation"]
    built = HuggingFaceModel(*fields, lambda field: f"the model.{field}", description.get("arguments"))
    sketch = built.sketch(len(model.state_dict()))
    layers = {}
    for name, layer in compressed_layers(model).items():
        if not isinstance(layer, QuantizedLinear):
            raise ArgumentError(
                f"{name} is {kind_of(layer)}; compressed-tensors holds dense layers in codes alone. Use mpochain.save, "
                "or compress with method='gptq' or 'rtn'"
            )
        if is_transposed(sketch.get_submodule(name)) or not isinstance(sketch.get_submodule(name), nn.Linear):
            raise ArgumentError(
                f"{name} takes the place of {kind_of(sketch.get_submodule(name))}; compressed-tensors holds nn.Linear "
                "alone. Use mpochain.save"
            )
        if layer.in_features % min(layer.scheme.group, layer.in_features):
            raise ArgumentError(
                f"{name} has {layer.scheme} of {layer.in_features} columns; compressed-tensors needs groups that "
                "divide them. Use mpochain.save, or another group="
            )
        layers[name] = layer
    if not layers:
        raise ArgumentError("the model has no layer in codes; compress it with method='gptq' or 'rtn' first")
    return layers


def _quantization(layers: dict[str, QuantizedLinear]) -> dict[str, Any]:
    """The field ``quantization_config``: a group of layers for each scheme."""
    targets: dict[tuple[Scheme, bool], list[str]] = {}
    for name, layer in layers.items():
        targets.setdefault((layer.scheme, layer.scheme.group >= layer.in_features), []).append(name)
    groups = {}
    for number, ((scheme, whole_rows), names) in enumerate(targets.items()):
        weights: dict[str, Any] = {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.symmetric,
            "strategy": "channel" if whole_rows else "group",
            "group_size": None if whole_rows else scheme.group,
            "dynamic": False,
        }
        groups[f"group_{number}"] = {"targets": names, "format": _FORMAT, "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [],
    }


def _stored(model: nn.Module, layers: dict[str, QuantizedLinear]) -> dict[str, Tensor]:
    """The tensors of the file; those that are tied have their first name only."""
    tensors: dict[str, Tensor] = {}
    for name, value in distinct_tensors(model)[0].items():
        owner, _, leaf = name.rpartition(".")
        layer = layers.get(owner)
        if layer is None:
            tensors[name] = value
        elif leaf == "weight_packed":
            tensors[name] = value
            tensors[f"{owner}.weight_shape"] = torch.tensor(layer.shape)
        elif leaf == "weight_zero_point":
            # Packed along the rows of the weight.
            tensors[name] = packed(value.T.contiguous(), layer.scheme.bits).T
        elif leaf != "prototype":
            tensors[name] = value
    return tensors
