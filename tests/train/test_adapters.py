"""Chains as adapters: beside frozen layers, trained, merged exactly, and saved alone."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers
from torch import nn

import mpochain as mpo
from mpochain.errors import ArgumentError, CheckpointError, MPOError, ShapeError
from mpochain.nn import AdaptedLinear
from mpochain.train import FinetuneConfig, adapt, finetune, load_adapter, merge_adapters, save_adapter

V, LENGTH = 40, 12
CONFIG = FinetuneConfig(steps=6, batch_size=4, warmup_steps=2, learning_rate=1e-2)
SIZES = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)).eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


MODELS = {"llama": llama, "gpt2": gpt2}


def windows():
    return torch.randint(V, (12, LENGTH), generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model(windows()).logits


@pytest.fixture(params=MODELS)
def dense(request):
    return MODELS[request.param]()


def trained(model):
    """A model with adapters after some steps."""
    adapt(model, bond=3, targets=["re:.*(down_proj|q_proj|c_fc|c_attn)"])
    result = finetune(model, windows(), config=CONFIG)
    assert result.losses[-1] < result.losses[0]
    return model


def test_a_new_adapter_changes_nothing_and_trains_its_chains_alone(dense):
    model = copy.deepcopy(dense)
    layers = adapt(model, bond=3)
    assert all(isinstance(layer, AdaptedLinear) for layer in layers.values())
    assert not any("lm_head" in name for name in layers), "it shares the weight of the embedding"
    assert torch.equal(logits(model), logits(dense))
    before = copy.deepcopy(model.state_dict())
    finetune(model, windows(), config=CONFIG)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".delta." in name}


def test_merged_layers_are_plain_and_compute_the_same(dense):
    model = trained(copy.deepcopy(dense))
    expected = logits(model)
    assert not torch.allclose(expected, logits(dense), atol=1e-3)
    classes = [type(module) for module in dense.modules()]
    assert merge_adapters(model) == 4
    assert [type(module) for module in model.modules()] == classes
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(dense)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again), logits(model)), "the names are those of before"


def test_merging_is_exact_in_float64():
    layer = AdaptedLinear(nn.Linear(12, 8).double(), mpo.ChainSpec((2, 4), (3, 4), 2))
    nn.init.normal_(layer.delta.core_0_1)
    x = torch.randn(5, 12, dtype=torch.float64)
    expected = layer(x)
    torch.testing.assert_close(layer.merged()(x), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_saved_alone_and_loaded_beside_its_model(dense, dtype, tmp_path):
    dense = dense.to(dtype)
    model = trained(copy.deepcopy(dense))
    folder = save_adapter(model, tmp_path / "adapter")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 60_000
    loaded = load_adapter(copy.deepcopy(dense), folder)
    assert torch.equal(logits(loaded), logits(model))
    assert {name for name, value in loaded.named_parameters() if value.requires_grad} == {
        name for name, value in model.named_parameters() if value.requires_grad
    }
    save_adapter(trained(copy.deepcopy(dense)), folder)  # replaced in one step


def test_an_adapter_of_another_model_is_refused(dense, tmp_path):
    folder = save_adapter(trained(copy.deepcopy(dense)), tmp_path / "adapter")
    other = copy.deepcopy(dense)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1
    before = logits(other)
    with pytest.raises(CheckpointError, match="is of another base model"):
        load_adapter(other, folder)
    assert torch.equal(logits(other), before)
    assert not any(isinstance(module, AdaptedLinear) for module in other.modules())


@pytest.mark.parametrize("damage", ["bytes", "bond", "kind", "none", "layer", "dims"])
def test_damaged_folders_are_refused(dense, damage, tmp_path):
    folder = save_adapter(trained(copy.deepcopy(dense)), tmp_path / "adapter")
    config = json.loads((folder / "adapter.json").read_text())
    name = next(iter(config["layers"]))
    if damage == "bytes":
        data = bytearray((folder / "adapter.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "adapter.safetensors").write_bytes(data)
    elif damage == "none":
        (folder / "adapter.json").unlink()
    else:
        if damage == "bond":
            config["layers"][name]["bonds"] = [2]
        elif damage == "kind":
            config["format"] = "peft"
        elif damage == "layer":
            config["layers"]["nowhere"] = config["layers"][name]
        else:
            config["layers"][name]["out_dims"] = [0, 3]
        (folder / "adapter.json").write_text(json.dumps(config))
    model = copy.deepcopy(dense)
    with pytest.raises(CheckpointError):
        load_adapter(model, folder)
    assert not any(isinstance(module, AdaptedLinear) for module in model.modules())


def test_what_cannot_be_adapted_is_refused(dense, tmp_path):
    model = copy.deepcopy(dense)
    with pytest.raises(ArgumentError, match="matches no dense linear layer; similar names"):
        adapt(model, targets=["re:.*up_projection"])
    with pytest.raises(ArgumentError, match="has no adapters to merge"):
        merge_adapters(model)
    with pytest.raises(ArgumentError, match="has no adapters to save"):
        save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ArgumentError, match="has no dense linear layer to adapt"):
        adapt(nn.Sequential(nn.Tanh()))
    name = next(name for name, module in model.named_modules() if name.endswith(("q_proj", "c_fc")))
    right = adapt(copy.deepcopy(dense), targets=[name])[name].delta.specs[0]
    other = next(other for other in adapt(copy.deepcopy(dense)) if other > name)
    with pytest.raises(ShapeError):
        adapt(model, specs={name: right, other: mpo.ChainSpec((2, 2), (2, 2), 2)})
    assert all(parameter.requires_grad for parameter in model.parameters())
    adapt(model, bond=2)
    with pytest.raises(ArgumentError, match="has adapters already"):
        adapt(model, bond=2)
    with pytest.raises(MPOError, match=r"has adapters.*merge_adapters"):
        mpo.save(model, tmp_path / "model")
    assert not (tmp_path / "model" / "config.json").exists()


def test_a_chain_that_is_not_finite_is_not_merged(dense):
    model = copy.deepcopy(dense)
    layers = adapt(model, bond=2)
    last = list(layers.values())[-1]
    with torch.no_grad():
        last.delta.core_0_0.fill_(float("nan"))
        last.delta.core_0_1.fill_(1.0)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match="is not finite"):
        merge_adapters(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())


def test_it_survives_what_modules_survive(dense):
    layer = AdaptedLinear(nn.Linear(12, 8), mpo.ChainSpec((2, 4), (3, 4), 2))
    nn.init.normal_(layer.delta.core_0_1)
    x = torch.randn(3, 2, 12)
    other = copy.deepcopy(layer)
    assert torch.equal(other(x), layer(x))
    assert layer.bias is layer.base.bias
    torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), layer(x), rtol=1e-4, atol=1e-5)
    assert (layer.in_features, layer.out_features) == (12, 8)
    layer.base.requires_grad_(False)
    layer.double()(x.double()).sum().backward()
    assert layer.base.weight.grad is None
    assert layer.delta.core_0_0.grad is not None
