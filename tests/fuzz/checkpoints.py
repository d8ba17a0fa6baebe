"""Mutants of checkpoints: configuration and tensors, of every kind of layer and of Hugging Face models."""

from __future__ import annotations

import hashlib
import json
import re

import torch
import transformers
from fuzz.mutations import (
    at,
    mutated_bytes,
    mutated_json,
    mutated_safetensors,
    mutated_tensors,
    paths_of,
    written_tensors,
)
from fuzz.outcomes import WrongContentError
from layers import NAMES, layer_named
from safetensors.torch import load
from tied_net import TiedNet
from torch import nn
from versions import as_version1, description_of, tensors_of

import mpochain as mpo
from mpochain.checkpoint import contents
from mpochain.nn import RowEmbedding, RowLinear

# The part of a configuration that describes a Hugging Face model, in version 1, and its layers, in version 2.
_PARTS = ("model", "quantization_config")


class _Scaled(nn.Module):
    """A layer with a buffer that its state dict leaves out."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(12, 8)
        self.register_buffer("scale", torch.full((8,), 2.0), persistent=False)


def _dense_of(layer):
    if isinstance(layer, RowEmbedding):
        return lambda: nn.Sequential(nn.Embedding(*layer.shape))
    out, in_ = layer.shape
    return lambda: nn.Sequential(nn.Linear(in_, out, layer.bias is not None))


def _hugging_face(random_seed):
    shared = {"vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    kinds = (
        lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**shared, intermediate_size=16, max_position_embeddings=32)
        ),
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=30, n_positions=16, n_embd=12, n_layer=1, n_head=2)
        ),
        lambda: transformers.Mamba2ForCausalLM(
            transformers.Mamba2Config(
                vocab_size=30, hidden_size=12, num_hidden_layers=1, state_size=4, num_heads=3, head_dim=8, n_groups=1
            )
        ),
    )
    torch.manual_seed(0)
    model = kinds[random_seed % len(kinds)]()
    mpo.compress(model, 0.7, method="svd")
    return model


class Checkpoints:
    """Checkpoints in a folder, each with the function that builds its architecture."""

    def __init__(self, folder):
        self.folder = folder
        self.models = {}
        for name in NAMES:
            layer = layer_named(name, torch.float32)
            if not isinstance(layer, RowLinear):  # a head is stored with its embedding
                self._add(name, nn.Sequential(layer), _dense_of(layer))
        tied = TiedNet()
        mpo.compress(tied, 0.8, method="svd")
        self._add("tied", tied, TiedNet)
        scaled = _Scaled()
        mpo.compress(scaled, 0.7, method="svd")
        self._add("scaled", scaled, _Scaled)
        for k in range(3):
            self._add(f"transformers {k}", _hugging_face(k), None)
            self._add(f"transformers {k}, version 1", _hugging_face(k), None)
        self.own = [name for name in self.models if not name.startswith("transformers")]
        self.others = [name for name in self.models if name.startswith("transformers")]

    def _add(self, name, model, build):
        saved = mpo.save(model.eval(), self.folder / "pristine" / name)
        if name.endswith("version 1"):
            as_version1(saved)
        config = json.loads((saved / "config.json").read_text())
        data = tensors_of(saved).read_bytes()
        self.models[name] = config, data, load(data), build

    def mutant(self, random, *, own):
        """Write a mutant to a folder; return its reader, names of its files, and names of its fields."""
        config, data, tensors, build = self.models[random.choice(self.own if own else self.others)]
        folder = self.folder / "mutant"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        text, names, sealed = None, [], True
        kind = random.randrange(8)
        if kind < 4:
            config, names = mutated_json(random, config)
            part = next((part for part in _PARTS if isinstance(config, dict) and part in config), None)
            if part is not None and isinstance(config[part], dict) and random.random() < 0.5:
                config[part], more = mutated_json(random, config[part])
                names = [*names, *more]
        elif kind == 4:
            text = mutated_bytes(random, json.dumps(config, indent=1).encode())
        elif kind == 5:
            tensors, names = mutated_tensors(random, tensors)
            data = written_tensors(tensors)
        elif kind == 6:
            data = mutated_safetensors(random, data)
        else:
            data, sealed = mutated_bytes(random, data), random.random() < 0.8
        file = self.models["tied"][0]["tensors"]
        if isinstance(config, dict):
            if kind in (5, 6, 7) and sealed:
                config = _sealed(config, hashlib.sha256(data).hexdigest())
            file = _file_of(config) or file
        (folder / file).write_bytes(data)
        (folder / "config.json").write_bytes(text if text is not None else json.dumps(config).encode())
        if text is not None:
            names += re.findall(r"\w{3,}", text.decode("utf-8", "replace"))
        names += list(tensors) + [str(key) for path in paths_of(config) for key in path]
        return lambda: self._read(folder, build), (folder,), names

    def pristine(self, name):
        """Read a checkpoint as it was written."""
        build = self.models[name][-1]
        return lambda: self._read(self.folder / "pristine" / name, build)

    def _read(self, folder, build):
        if build is None:
            loaded = mpo.load(folder)
        else:
            with torch.device("meta"):
                architecture = build()
            loaded = mpo.load(folder, architecture)
        config = json.loads((folder / "config.json").read_text())
        _require_tensors(loaded, description_of(config), load(tensors_of(folder).read_bytes()))
        contents(folder)
        if build is not None and isinstance(loaded, nn.Sequential):
            _run(loaded[0])
        return "same"


def _sealed(config, sha256):
    """The configuration with another hash of the tensors."""
    if "format" in config:
        return {**config, "sha256": sha256, "tensors": f"model-{sha256[:16]}.safetensors"}
    return {**config, "quantization_config": {**config["quantization_config"], "sha256": sha256}}


def _file_of(config):
    """The name of the file of tensors that a mutant states; None if it states none that could be written."""
    name = config.get("tensors")
    if "quantization_config" in config and isinstance(config["quantization_config"], dict):
        name = f"model-{str(config['quantization_config'].get('sha256'))[:16]}.safetensors"
    if isinstance(name, str) and name.startswith("model-"):
        return name.replace("/", "").replace("\x00", "")[:200]
    return None


def _require_tensors(model, config, stored):
    """Compare the tensors of a loaded model with those of its file, bit for bit."""
    held = dict(model.state_dict())
    held |= {name: value for name, value in model.named_buffers() if name in at(config, ()).get("buffers", [])}
    for name, value in held.items():
        wanted = stored[config["tied"].get(name, name)]
        same = value.dtype == wanted.dtype and value.shape == wanted.shape
        if not same or value.contiguous().view(torch.uint8).tolist() != wanted.contiguous().view(torch.uint8).tolist():
            raise WrongContentError(f"{name} is not what the file holds")
    left = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]
    if left:
        raise WrongContentError(f"{left} have no values")


def _run(layer):
    """Run a layer that was accepted: no error may come as late as its first call."""
    with torch.no_grad():
        if isinstance(layer, RowEmbedding):
            layer(torch.arange(layer.shape[0]))
        else:
            layer(torch.ones(2, layer.in_features, dtype=layer.dtype))
