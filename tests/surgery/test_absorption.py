"""Orders that neighbours take over: the function stays, the look-ups go, and what is shared is left alone."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mpochain as mpo
from mpochain import InterpolativeLinear, MPOLinear, PermutedLinear
from mpochain.compression import Kronecker
from mpochain.nn.shared_rows import shared_rows
from mpochain.surgery import absorb_orders

FORMS = ["dense", "chain", "interpolative", "rows", "columns", "both"]


def layer_of(form, in_, out, generator):
    if form == "dense":
        return nn.Linear(in_, out, dtype=torch.float64)
    if form == "chain":
        return MPOLinear(in_, out, max_bond=2, dtype=torch.float64)
    if form == "interpolative":
        layer = InterpolativeLinear(in_, out, 2, dtype=torch.float64)
        layer.place.copy_(torch.randperm(out, generator=generator))
        return layer
    return PermutedLinear(
        MPOLinear(in_, out, max_bond=2, bias=False, dtype=torch.float64),
        rows=torch.randperm(out, generator=generator) if form != "columns" else None,
        columns=torch.randperm(in_, generator=generator) if form != "rows" else None,
        bias=torch.randn(out, dtype=torch.float64, generator=generator),
    )


class Gated(nn.Module):
    def __init__(self, forms, generator):
        super().__init__()
        self.gate_proj, self.up_proj = (layer_of(form, 4, 8, generator) for form in forms[:2])
        self.down_proj, self.act = layer_of(forms[2], 8, 4, generator), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Plain(nn.Module):
    def __init__(self, forms, generator):
        super().__init__()
        self.c_fc, self.c_proj = layer_of(forms[0], 4, 8, generator), layer_of(forms[1], 8, 4, generator)

    def forward(self, x):
        return self.c_proj(torch.relu(self.c_fc(x)))


def look_ups(model):
    return sum(
        len(layer.indices())
        if isinstance(layer, PermutedLinear)
        else isinstance(layer, InterpolativeLinear) and layer.place.tolist() != list(range(layer.out_features))
        for layer in model.modules()
    )


@given(st.lists(st.sampled_from(FORMS), min_size=3, max_size=3), st.booleans(), st.integers(0, 2**16))
def test_the_function_stays(forms, gated, seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential((Gated if gated else Plain)(forms, generator)).eval()
    x = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    expected, before = model(x), look_ups(model)
    saved = absorb_orders(model)
    torch.testing.assert_close(model(x), expected)
    assert look_ups(model) <= before - saved  # an order that happens to be the given one goes too
    assert absorb_orders(model) == 0


def test_what_is_saved():
    generator = torch.Generator().manual_seed(0)
    for forms, saved in (
        (("both", "both"), 1),
        (("rows", "dense"), 1),
        (("both", "interpolative"), 1),
        (("dense",) * 2, 0),
    ):
        assert absorb_orders(Plain(forms, generator)) == saved
    model = Plain(("rows", "columns"), generator)
    model.c_proj = PermutedLinear(MPOLinear(8, 4, max_bond=2, bias=False), columns=torch.argsort(model.c_fc.place))
    assert absorb_orders(model) == 2
    assert type(model.c_fc) is type(model.c_proj) is MPOLinear


def test_a_gated_mlp_of_interpolative_layers_looks_up_nothing_but_its_output():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Gated(("interpolative", "dense", "dense"), generator)
    for name, rank in (("gate_proj", 3), ("up_proj", 5)):
        layer = InterpolativeLinear(12, 40, rank, dtype=torch.float64)
        layer.place.copy_(torch.randperm(40))
        setattr(model, name, layer)
    model.down_proj = InterpolativeLinear(40, 4, 2, dtype=torch.float64)
    model.down_proj.place.copy_(torch.tensor([3, 1, 0, 2]))
    for cache in (False, True):
        mpo.set_execution(model, cache=cache)
        x = torch.randn(600, 12, dtype=torch.float64)
        with torch.no_grad():
            expected = model(x)
            assert absorb_orders(model) == (0 if cache else 2)
            torch.testing.assert_close(model(x), expected)
        for layer in (model.gate_proj, model.up_proj):
            assert torch.equal(layer.place, torch.arange(40))
            assert layer.coefficients.weight.abs().max() < 10
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        torch.autograd.grad(model(x).sum(), x), torch.autograd.grad(mpo.to_dense(copy.deepcopy(model))(x).sum(), x)
    )


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_rows_are_shared_in_the_type_of_the_layers(dtype, accuracy):
    torch.manual_seed(0)
    layers = [InterpolativeLinear(20, 30, rank, dtype=dtype) for rank in (8, 20)]
    weights = [layer.weight.float() for layer in layers]
    shared = shared_rows([*layers, nn.Linear(20, 30)])
    shared.store()
    for layer, weight in zip(layers, weights, strict=True):
        assert layer.dtype == dtype
        torch.testing.assert_close(layer.weight.float(), weight, rtol=0, atol=accuracy * weight.abs().max().item())
    assert shared_rows(layers[:1]) is None


def test_layers_without_values_are_left_alone():
    model = Plain(("interpolative", "dense"), torch.Generator().manual_seed(0)).to("meta")
    assert absorb_orders(model) == 0


def test_rows_are_not_sought_where_nothing_is_looked_up(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    model = Gated(("interpolative",) * 3, generator)
    assert absorb_orders(model) > 0
    monkeypatch.setattr(mpo.surgery.absorption, "shared_rows", lambda layers: pytest.fail("sought"))
    assert absorb_orders(model) == 0


def test_layers_whose_rows_suit_only_one_of_them_keep_an_order_of_their_own():
    model = Gated(("interpolative", "interpolative", "dense"), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer, rows in ((model.gate_proj, [3, 4]), (model.up_proj, [6, 7])):
            # Only two outputs are not zero, and those are others in each layer.
            layer.coefficients.weight.zero_()
            layer.place.copy_(torch.argsort(torch.tensor([*rows, *(k for k in range(8) if k not in rows)])))
        x = torch.randn(5, 4, dtype=torch.float64)
        expected = model(x)
        assert absorb_orders(model) == 1
        torch.testing.assert_close(model(x), expected)


def test_gpt2_is_saved_and_read_as_before(tmp_path):
    torch.manual_seed(0)
    settings = transformers.GPT2Config(vocab_size=23, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(settings).eval()
    mpo.compress(model, None, targets=[r"re:.*mlp\.c_fc"], method=Kronecker(permuted=True, factors=[(4, 2)], terms=2))
    tokens = torch.randint(23, (2, 12))
    with torch.no_grad():
        expected = model(tokens).logits
        assert absorb_orders(model) == 2
        torch.testing.assert_close(model(tokens).logits, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mpo.load(mpo.save(model, tmp_path))(tokens).logits, model(tokens).logits)


def test_frozen_layers_stay_frozen():
    model = Plain(("both", "both"), torch.Generator().manual_seed(0)).requires_grad_(False)
    assert absorb_orders(model) == 1
    assert not any(each.requires_grad for each in model.parameters())


def test_what_was_kept_of_the_old_order_is_forgotten():
    generator = torch.Generator().manual_seed(0)
    model, x = Plain(("interpolative", "columns"), generator), torch.randn(3, 4, dtype=torch.float64)
    mpo.set_execution(model, cache=True)
    with torch.no_grad():
        expected = model(x)
        assert absorb_orders(model) == 1
        torch.testing.assert_close(model(x), expected)
    assert model.c_fc.cache
    assert model.c_proj.cache


def test_what_learns_stays_apart():
    model = Plain(("rows", "dense"), torch.Generator().manual_seed(0))
    model.c_fc.bias.requires_grad_(False)
    assert absorb_orders(model) == 1
    assert {name for name, each in model.c_fc.named_parameters() if not each.requires_grad} == {"bias"}


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * torch.arange(self.out_features)


@pytest.mark.parametrize("how", ["shared", "tied", "norm", "sizes", "own", "forward", "weight_norm", "old weight_norm"])
def test_what_is_left_alone(how):
    generator = torch.Generator().manual_seed(0)
    model = Plain(("rows", "dense"), generator)
    whole = nn.ModuleDict({"mlp": model})
    if how == "shared":
        whole["again"] = model.c_fc
    elif how == "tied":
        whole["other"] = nn.Linear(8, 4, dtype=torch.float64)
        whole["other"].weight = model.c_proj.weight
    elif how == "norm":
        model.norm = nn.LayerNorm(8)
    elif how == "own":
        model.scale = nn.Parameter(torch.ones(8))
    elif how == "forward":
        whole["mlp"] = model = Gated(("dense", "rows", "dense"), generator)
        model.up_proj, model.gate_proj = Scaled(4, 8, dtype=torch.float64), model.up_proj
    elif how == "weight_norm":
        nn.utils.parametrizations.weight_norm(model.c_proj)
    elif how == "old weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nn.utils.weight_norm(model.c_proj)
    else:
        model.c_proj = nn.Linear(9, 4)
    before = copy.deepcopy(whole.state_dict())
    assert absorb_orders(whole) == 0
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
