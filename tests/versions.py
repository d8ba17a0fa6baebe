"""Folders of Hugging Face models in both versions of the format, and changes of them that fit either."""

from __future__ import annotations

import json
from pathlib import Path


def as_version1(folder):
    """Rewrite the configuration of a folder as version 1 had it; the tensors stay."""
    file, generation = folder / "config.json", folder / "generation_config.json"
    config = json.loads(file.read_text())
    description = config.pop("quantization_config")
    config.pop("transformers_weights")
    (name,) = config["architectures"]
    model = {"library": "transformers", "name": name, "config": config, "generation": None}
    if generation.exists():
        model["generation"] = json.loads(generation.read_text())
        generation.unlink()
    if "arguments" in description:
        model["arguments"] = description["arguments"]
    sha256 = description["sha256"]
    data = {
        "format": "mpochain",
        "version": 1,
        "tensors": f"model-{sha256[:16]}.safetensors",
        "sha256": sha256,
        "layers": description["layers"],
        "tied": description["tied"],
        **({"experts": description["experts"]} if "experts" in description else {}),
        "model": model,
    }
    file.write_text(json.dumps(data, indent=1) + "\n")
    return folder


def as_version2(folder):
    """Rewrite the configuration of a folder of version 1; the tensors stay."""
    file = folder / "config.json"
    data = json.loads(file.read_text())
    description = {"quant_method": "mpochain", "version": 2}
    description |= {key: data[key] for key in ("sha256", "layers", "tied", "experts") if key in data}
    config = data["model"]["config"] | {"architectures": [data["model"]["name"]], "quantization_config": description}
    file.write_text(json.dumps(config))
    return folder


def set_model(data, *, name=None, config=None, arguments=None, **fields):
    """Change the class, the configuration or the arguments in the decoded ``config.json`` of either version."""
    if "model" in data:
        model = data["model"]
        if name is not None:
            model["name"] = name
        model["config"] = (model["config"] if config is None else config) | fields
        if arguments is not None:
            model["arguments"] = arguments
        return
    if config is not None:
        kept = {key: data[key] for key in ("architectures", "quantization_config", "transformers_weights")}
        data.clear()
        data.update(config | kept)
    if name is not None:
        data["architectures"] = [name]
    if arguments is not None:
        data["quantization_config"]["arguments"] = arguments
    data.update(fields)


def description_of(data):
    """The part of a decoded ``config.json`` with the fields ``layers`` and ``tied``."""
    return data if "format" in data else data["quantization_config"]


def tensors_of(folder):
    """The file of the tensors of a folder of either version."""
    data = json.loads((Path(folder) / "config.json").read_text())
    return Path(folder) / f"model-{description_of(data)['sha256'][:16]}.safetensors"
