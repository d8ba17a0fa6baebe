"""The plug-in of vLLM as far as it needs no engine: its entry point, folders that it refuses, and loaded tensors."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from integrations.models import gpt2, llama
from layers import NAMES, layer_named
from torch import nn

import mpochain as mpo
from mpochain.checkpoint.configuration import Description
from mpochain.errors import ArgumentError, CheckpointError
from mpochain.integrations.vllm.folder import SERVED, require_intact, require_servable
from mpochain.integrations.vllm.shards import MARK, Shards, layer_for
from mpochain.nn import CompressedLayer

CPU = torch.device("cpu")


def test_the_entry_point_is_declared_and_imports_no_vllm():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, value),) = project["entry-points"]["vllm.general_plugins"].items()
    module, _, function = value.partition(":")
    code = (
        "import sys, importlib, mpochain\n"
        "assert not {'vllm', 'torch'} & set(sys.modules)\n"
        f"assert callable(getattr(importlib.import_module({module!r}), {function!r}))\n"
        "assert 'vllm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert name == "mpochain"
    assert any(requirement.startswith("vllm") for requirement in project["optional-dependencies"]["vllm"])


@pytest.mark.parametrize("name", NAMES)
def test_factors_are_those_of_the_weight(name):
    layer = layer_named(name)
    factors = layer.factors()
    assert (factors is not None) is name.startswith("interpolative")
    if factors is not None:
        left, right = factors
        torch.testing.assert_close(left @ right, layer.weight)
        assert len(right) == layer.rank


def test_factors_of_a_chain_of_low_rank():
    layer = mpo.MPOLinear(12, 8, spec=mpo.shapes.low_rank(8, 12, 3))
    left, right = layer.factors()
    assert left.shape == (8, 3)
    torch.testing.assert_close(left @ right, layer.weight)


# Folders.


@pytest.fixture
def folder(tmp_path):
    model = llama()
    mpo.compress(model, 0.6, method="svd")
    return mpo.save(model, tmp_path)


def description(**fields):
    fields = {"quant_method": "mpochain", "version": 2, "layers": {}, "tied": {}, "sha256": "0" * 64} | fields
    return Description.model_validate(fields)


def config(name="LlamaForCausalLM", **fields):
    return SimpleNamespace(architectures=[name], **fields)


@pytest.mark.parametrize("name", SERVED)
def test_models_that_can_be_served(name):
    require_servable(description(), config(name))
    require_servable(description(tied={"lm_head.weight": "w"}), config(name, tie_word_embeddings=True))
    require_servable(description(layers={"a.up": {}}, tied={"a.up.core": "a.down.core"}), config(name))


@pytest.mark.parametrize(
    ("fields", "hf_config", "message"),
    [
        ({}, config("BloomForCausalLM"), "of the classes .*LlamaForCausalLM.*, and this is BloomForCausalLM.*convert"),
        ({}, SimpleNamespace(architectures=None), "an unnamed class"),
        ({"experts": ["a.mlp"]}, config(), "a.mlp has compressed experts.*mpochain convert"),
        ({"tied": {"lm_head.weight": "w"}}, config(tie_word_embeddings=False), "lm_head.weight is tied to w"),
        ({"tied": {"a.weight": "w"}}, config(tie_word_embeddings=True), "a.weight is tied to w.*mpochain convert"),
    ],
)
def test_models_that_cannot_be_served(fields, hf_config, message):
    with pytest.raises(ArgumentError, match=message):
        require_servable(description(**fields), hf_config)


def test_damaged_and_foreign_files_are_refused(folder):
    require_intact(folder)
    (file,) = folder.glob("*.safetensors")
    older = folder / "model-0123456789abcdef.safetensors"
    older.write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=f"{older.name} is no part of the model"):
        require_intact(folder)
    older.unlink()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged: its sha256"):
        require_intact(folder)


def test_files_of_an_index_belong_to_the_model(tmp_path):
    model = gpt2()
    mpo.compress(model, 0.6, method="svd")
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    require_intact(tmp_path)
    files[0].unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read|damaged"):
        require_intact(tmp_path)


# Tensors as the engine passes them on.


def shard(value, number):
    value = value.clone()
    value.shard_id = number
    return value


def fused():
    """A compressed and a dense layer, and what a file holds for them."""
    torch.manual_seed(0)
    up, gate = mpo.InterpolativeLinear(6, 4, 2, bias=False), nn.Linear(6, 4, bias=False)
    tensors = [
        *((f"{name}{MARK}", shard(value, 1)) for name, value in up.state_dict().items()),
        *((name, shard(value, 0)) for name, value in gate.state_dict().items()),
    ]
    empty = {
        "gate": layer_for(None, "gate", (4, 6), torch.float32, CPU),
        "up": layer_for(up.entry().model_dump(mode="json"), "up", (4, 6), torch.float32, CPU),
    }
    return (gate, up), empty, tensors


def test_fused_layers_are_loaded_in_any_order_and_in_parts():
    dense, empty, tensors = fused()
    shards = Shards(empty, {}, {})
    assert list(shards.load(tensors[1:])) == [name for name, _ in tensors[1:]]
    assert list(shards.load(tensors[:1])) == [tensors[0][0]]
    shards.finish()
    x = torch.randn(3, 6)
    for layer, loaded in zip(dense, shards.layers, strict=True):
        assert torch.equal(layer(x), loaded(x))
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_attention_is_loaded_by_letters_and_former_names():
    torch.manual_seed(0)
    layers = {name: mpo.InterpolativeLinear(6, 4, 2) for name in "qkv"}
    entry = layers["q"].entry().model_dump(mode="json")
    shards = Shards({name: layer_for(entry, name, (4, 6), torch.float32, CPU) for name in layers}, {}, {})
    for letter, layer in layers.items():
        former = {new: old for old, new in layer.former_names().items()}
        tensors = [(f"{former.get(name, name)}{MARK}", shard(v, letter)) for name, v in layer.state_dict().items()]
        assert list(shards.load(tensors))
    shards.finish()
    for layer, loaded in zip(layers.values(), shards.layers, strict=True):
        assert torch.equal(layer.weight, loaded.weight)


def test_a_missing_tensor_is_an_error():
    _, empty, tensors = fused()
    for number, (name, _) in enumerate(tensors):
        shards = Shards(empty, {}, {})
        assert list(shards.load(tensors[:number] + tensors[number + 1 :]))
        with pytest.raises(CheckpointError, match=f"{name.removesuffix(MARK)} is in no file of the folder"):
            shards.finish()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (f"rows.weight{MARK}", shard(torch.zeros(6, 2), 1), r"up.rows.weight has shape \(6, 2\).*expected \(2, 6\)"),
        (f"place{MARK}", shard(torch.zeros(4), 1), "up.place has shape .* torch.float32, expected .* torch.int32"),
        (f"core{MARK}", shard(torch.zeros(4), 1), "up.core is no tensor of this layer"),
        (f"weight{MARK}", shard(torch.zeros(4, 6), 0), "gate.weight was not passed on as it is in the file"),
        ("rows.weight", shard(torch.zeros(2, 6), 1), "up.rows.weight was not passed on as it is in the file"),
        ("weight", shard(torch.zeros(4, 6), 2), "arrived for the part 2"),
        ("weight", torch.zeros(4, 6), "arrived for the part None"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name, value, message):
    shards = Shards(fused()[1], {}, {})
    with pytest.raises(CheckpointError, match=message):
        list(shards.load([(name, value)]))


def test_a_tensor_of_two_files_is_refused():
    _, empty, tensors = fused()
    shards = Shards(empty, {}, {})
    with pytest.raises(CheckpointError, match="is in the files twice"):
        list(shards.load([tensors[0], tensors[0]]))


def test_indices_out_of_range_are_refused():
    _, empty, tensors = fused()
    shards = Shards(empty, {}, {})
    assert list(shards.load((name, v.fill_(9) if name.startswith("place") else v) for name, v in tensors))
    with pytest.raises(CheckpointError, match="up.place"):
        shards.finish()


def test_tied_tensors_are_those_of_another_layer():
    torch.manual_seed(0)
    table = mpo.MPOEmbedding(9, 8, max_bond=2)
    head = mpo.surgery.tied_head(table)
    shared, tied = {}, {f"head.{name}": f"embed.table.{name}" for name, _ in head.named_parameters()}
    first = Shards({"embed": _empty(table)}, shared, tied)
    second = Shards({"head": _empty(head)}, shared, tied)
    assert list(first.load((f"{name}{MARK}", value) for name, value in table.state_dict().items()))
    second.finish()
    first.finish()
    x = torch.randn(2, 8)
    assert torch.equal(second.layers[0](x), head(x))
    assert second.layers[0].core_0_0 is first.layers[0].table.core_0_0
    with pytest.raises(CheckpointError, match=r"head.core_0_0 is tied to embed.table.core_0_0.*use one process"):
        Shards({"head": _empty(head)}, {}, tied).finish()


def _empty(layer: CompressedLayer) -> nn.Module:
    return layer_for(layer.entry().model_dump(mode="json"), "layer", layer.shape, torch.float32, CPU)


def test_entries_of_other_sizes_are_refused():
    entry = mpo.InterpolativeLinear(6, 4, 2).entry().model_dump(mode="json")
    with pytest.raises(ArgumentError, match=r"layers.up is a 4x6 matrix, but the layer that it replaces is 4x8"):
        layer_for(entry, "up", (4, 8), torch.float32, CPU)
    with pytest.raises(ArgumentError, match=r"layers.up.rank"):
        layer_for(entry | {"rank": -1}, "up", (4, 6), torch.float32, CPU)
