"""Compressed layers made of nn.Linear: the same function, nothing dense, and clear refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from layers import NAMES, inputs_of, layer_named
from torch import nn
from transformers.pytorch_utils import Conv1D

import mpochain as mpo
from mpochain.decomposition import interpolative, weighted_low_rank
from mpochain.errors import ArgumentError
from mpochain.nn import CompressedLayer, LinearChain
from mpochain.quantization import Scheme

KINDS = {name: layer_named(name).kind for name in NAMES}
EMBEDDINGS = [name for name in NAMES if layer_named(name).looks_up]
CODES = [name for name in NAMES if KINDS[name].startswith("quantized") and name not in EMBEDDINGS]
# Made of no torch.nn.Linear: tables, and blocks that are multiplied in one call.
TABLES = [name for name in NAMES if KINDS[name] in ("rows", "block_train")]
ALREADY = [name for name in NAMES if KINDS[name] in ("interpolative", "linear_chain") or name == "sum with linears"]
MADE = [name for name in NAMES if name not in (*EMBEDDINGS, *CODES, *TABLES)]


def held_by_linears(model):
    """The sizes of matrices in modules that tools find, and of all others."""
    found = [module for module in model.modules() if isinstance(module, nn.Linear)]
    inside = {id(parameter) for module in found for parameter in module.parameters()}
    others = [value for value in model.parameters() if id(value) not in inside and value.ndim > 1 and value.numel()]
    return sum(module.weight.numel() for module in found), others


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 3e-6), (torch.bfloat16, 0.05)]
)
def test_every_form_is_the_same_function_of_as_many_numbers(name, dtype, tolerance):
    layer = layer_named(name, dtype)
    model = nn.Sequential(copy.deepcopy(layer))
    changed = mpo.as_linears(model)
    assert list(changed) == ([] if name in ALREADY else ["0"])
    size, others = held_by_linears(model)
    assert size == layer.numbers().parameters
    assert not others
    x = inputs_of(layer, (6,), dtype)
    expected = layer(x)
    assert (model(x) - expected).abs().max() <= tolerance * expected.abs().max()
    assert model[0].dtype == dtype
    assert mpo.as_linears(model) == {}, "there is nothing left to change"
    assert isinstance(mpo.to_dense(model)[0], nn.Linear)


def rounded(model):
    """The same model with its matrices rounded to 255 numbers, with a scale for each row."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            with torch.no_grad():
                scale = module.weight.abs().amax(1, keepdim=True) / 127
                module.weight.copy_((module.weight / scale).round() * scale)
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_balanced_factors_are_the_same_function_and_round_better(bias):
    torch.manual_seed(0)
    weight = torch.randn(96, 64, dtype=torch.float64) * torch.logspace(0, -2, 64)
    low = interpolative(*weighted_low_rank(weight).factors(32))
    offset = torch.randn(96, dtype=torch.float64) if bias else None
    layer, x = mpo.InterpolativeLinear.from_interpolation(low, offset), torch.randn(50, 64).double()
    layer.rows.requires_grad_(False)
    plain, balanced = nn.Sequential(layer), nn.Sequential(copy.deepcopy(layer)).eval()
    expected = plain(x)
    assert list(mpo.as_linears(balanced, balanced=True)) == ["0"]
    assert isinstance(balanced[0], LinearChain)
    assert balanced[0].numbers().parameters == layer.numbers().parameters + 32**2
    assert not balanced[0].training
    assert all(parameter.requires_grad for parameter in balanced.parameters())
    torch.testing.assert_close(balanced(x), expected, rtol=1e-4, atol=1e-4)
    errors = [(rounded(model)(x) - expected).norm() for model in (plain, balanced)]
    assert errors[1] < 0.7 * errors[0]


def test_other_layers_are_made_of_linears_as_without_balance():
    for name in MADE:
        one, other = nn.Sequential(layer_named(name)), nn.Sequential(layer_named(name))
        mpo.as_linears(one)
        mpo.as_linears(other, balanced=True)
        x = inputs_of(one[0], (4,))
        torch.testing.assert_close(other(x), one(x))
        if KINDS[name] not in ("interpolative", "mpo"):
            assert {key: value.shape for key, value in one.state_dict().items()} == {
                key: value.shape for key, value in other.state_dict().items()
            }


@pytest.mark.parametrize("name", CODES)
def test_codes_are_dequantised_when_that_is_asked_for(name):
    model = nn.Sequential(layer_named(name))
    x = inputs_of(model[0], (6,))
    expected = model(x)
    with pytest.raises(ArgumentError, match=r"0: .* held in codes already; give dequantize=True .* ignore=\['0'\]"):
        mpo.as_linears(model)
    before = model[0]
    assert mpo.as_linears(model, ignore="0") == {}
    assert model[0] is before
    assert list(mpo.as_linears(model, dequantize=True)) == ["0"]
    assert not held_by_linears(model)[1]
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", TABLES)
def test_heads_of_tables_are_refused_and_nothing_is_changed(name):
    model = nn.Sequential(mpo.MPOLinear(8, 8, max_bond=2), layer_named(name))
    before = list(model)
    with pytest.raises(ArgumentError, match=r"1: \w+Linear .* make it dense \(to_dense\(\)\), or leave it .*\['1'\]"):
        mpo.as_linears(model)
    assert list(model) == before
    assert list(mpo.as_linears(model, ignore=["1"])) == ["0"]


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings_stay(name):
    model = nn.Sequential(layer_named(name))
    before = model[0]
    assert mpo.as_linears(model) == {}
    assert model[0] is before


def test_a_head_tied_to_an_embedding_gets_its_own_cores():
    embedding = mpo.MPOEmbedding(10, 6, max_bond=2)
    model = nn.ModuleDict({"embedding": embedding, "head": mpo.surgery.tied_head(embedding)})
    x = torch.randn(3, 6)
    expected = model["head"](x)
    assert list(mpo.as_linears(model)) == ["head"]
    torch.testing.assert_close(model["head"](x), expected)
    with torch.no_grad():
        embedding.table.core_0_0.zero_()
    torch.testing.assert_close(model["head"](x), expected)


def test_modes_frozen_cores_places_and_dense_types_are_kept():
    layer = mpo.MPOLinear.from_linear(Conv1D(6, 4), max_bond=2).eval()
    layer.core_0_0.requires_grad_(False)
    model = nn.ModuleDict({"one": layer, "same": layer})
    changed = mpo.as_linears(model)
    assert model["one"] is model["same"] is changed["one"]
    assert isinstance(model["one"], LinearChain)
    assert not model["one"].training
    assert [site.weight.requires_grad for site in model["one"].terms[0]] == [False, True]
    assert isinstance(mpo.to_dense(model)["one"], Conv1D)


def test_what_cannot_be_replaced_is_told():
    layer = mpo.MPOLinear(8, 8, max_bond=2)
    with pytest.raises(ArgumentError, match=r"the model is itself MPOLinear.* as_linears\(\)"):
        mpo.as_linears(layer)
    assert isinstance(layer.as_linears(), LinearChain)
    model = nn.Sequential(layer)
    with pytest.raises(ArgumentError, match="'1' is no compressed layer of the model; its layers are 0"):
        mpo.as_linears(model, ignore=["1"])
    with pytest.raises(ArgumentError, match="model must be a torch.nn.Module"):
        mpo.as_linears(None)
    layer.register_forward_hook(lambda *_: None)
    with pytest.raises(ArgumentError, match="0 has hooks"):
        mpo.as_linears(model)
    assert model[0] is layer


def test_under_inference_mode_the_layers_can_be_trained_later():
    model = nn.Sequential(mpo.MPOLinear(8, 8, max_bond=2), mpo.QuantizedParts.of(mpo.MPOLinear(64, 64, 8), Scheme(4)))
    with torch.inference_mode():
        mpo.as_linears(model, dequantize=True)
    assert not any(parameter.is_inference() for parameter in model.parameters())
    assert all(isinstance(layer, CompressedLayer) for layer in model)


def test_folders_hold_such_layers(tmp_path):
    def model(layer):
        return nn.Sequential(layer(), nn.Linear(8, 3))

    chains = model(lambda: layer_named("chains", torch.float32))
    mpo.as_linears(chains)
    with torch.device("meta"):
        empty = model(lambda: nn.Linear(12, 8))
    loaded = mpo.load(mpo.save(chains, tmp_path), empty)
    assert isinstance(loaded[0], LinearChain)
    x = torch.randn(4, 12)
    assert torch.equal(loaded(x), chains(x))


def test_wrong_chains_are_refused():
    with pytest.raises(ArgumentError, match="at least one chain"):
        LinearChain([])
    specs = [mpo.ChainSpec((2, 2), (2, 2), 2), mpo.ChainSpec((2, 3), (2, 2), 2)]
    with pytest.raises(mpo.MPOError, match="must have one shape"):
        LinearChain(specs)
    with pytest.raises(ArgumentError, match="place must be 4 indices"):
        LinearChain(specs[:1], place=torch.arange(3))
    layer = LinearChain(specs[:1])
    layer.terms[0][1] = nn.Sequential(layer.terms[0][1])
    with pytest.raises(ArgumentError, match="a site of the LinearChain was replaced"):
        layer.reset_parameters()
