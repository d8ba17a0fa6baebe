"""A permuted layer is its dense matrix, however it is run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain import InterpolativeLinear, MPOError, MPOLinear, PermutedLinear
from mpochain.decomposition import split_off
from mpochain.nn.kinds import layer_of as layer_of_entry
from mpochain.surgery import learning_rate_scales

BATCHES = [(1,), (6,), (0,), (), (2, 1, 3)]
ROWS, COLUMNS = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4]), torch.tensor([4, 2, 0, 1, 5, 3])


def layer_of(orders="both", bias=True):
    torch.manual_seed(0)
    made = MPOLinear(6, 8, out_dims=(4, 2), in_dims=(2, 3), max_bond=2, bias=False, dtype=torch.float64)
    return PermutedLinear(
        made,
        rows=ROWS if orders in ("both", "rows") else None,
        columns=COLUMNS if orders in ("both", "columns") else None,
        bias=torch.randn(8, dtype=torch.float64) if bias else None,
    )


@pytest.mark.parametrize("orders", ["both", "rows", "columns"])
def test_the_weight_is_the_inner_one_in_its_order(orders):
    layer = layer_of(orders)
    there = layer.weight
    there = there[ROWS] if orders != "columns" else there
    there = there[:, COLUMNS] if orders != "rows" else there
    assert torch.equal(there, layer.inner.weight)


def test_a_split_becomes_a_layer_with_its_bias():
    W, bias = torch.randn(8, 6, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    found = split_off(W, [(2, 2)], terms=2)
    layer = PermutedLinear.from_split(found, bias)
    torch.testing.assert_close(layer.bias.detach(), bias)
    error = (layer.weight - W).norm() / W.norm()
    assert float(error.detach()) == pytest.approx(found.relative_error)
    with pytest.raises(MPOError, match="the bias must have shape"):
        PermutedLinear.from_split(found, bias[:7])


def test_what_handles_layers_handles_permuted_ones(tmp_path):
    layer, x = layer_of(), torch.randn(3, 6, dtype=torch.float64)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert mpo.set_execution(layer, cache=True) == 1
    assert set(learning_rate_scales(layer)) == {"parts.0.core_0_0", "parts.0.core_0_1"}
    assert layer.macs() == layer.inner.spec.macs()
    assert "6 -> 8, bias=True" in repr(layer)
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    drawn = copy.deepcopy(layer)
    drawn.reset_parameters()
    assert not torch.equal(drawn.weight, before[0])
    assert not torch.equal(drawn.bias, before[1])
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 2, dtype=torch.float64))
    with torch.device("meta"):
        architecture = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    loaded = mpo.load(mpo.save(model, tmp_path), architecture)
    assert torch.equal(loaded[0].weight, layer.weight)
    assert torch.equal(loaded[0].place, layer.place)
    dense = mpo.to_dense(model)
    assert [type(each) for each in dense] == [nn.Linear, nn.ReLU, nn.Linear]
    torch.testing.assert_close(dense[0](x), expected)


@pytest.mark.parametrize("orders", ["both", "rows", "columns"])
def test_its_description_makes_it_again(orders):
    layer = layer_of(orders)
    empty = layer_of_entry(layer.entry().model_dump(), (8, 6), "up")
    assert {each.device.type for each in empty.state_dict().values()} == {"meta"}
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in layer.state_dict().items()}
    description = layer.entry().model_dump()
    assert layer_of_entry(description, None, "up").in_features == 6
    with pytest.raises(MPOError, match=r"up: the inner layer of a permuted layer must have no bias"):
        layer_of_entry({**description, "inner": {**description["inner"], "bias": True}}, (8, 6), "up")
    with pytest.raises(MPOError, match="needs rows=, columns= or both"):
        layer_of_entry({**description, "rows": False, "columns": False}, (8, 6), "up")
    with pytest.raises(MPOError, match=r"up is an 8x6 matrix, but the layer that it replaces is 9x6"):
        layer_of_entry(description, (9, 6), "up")


def test_a_stored_order_that_is_none_is_refused(tmp_path):
    for change, message in (((0, 99), "each index"), ((0, 1), "each index"), ((0, -1), "each index")):
        for name in ("place", "columns"):
            layer = layer_of()
            getattr(layer, name)[change[0]] = change[1] if getattr(layer, name)[0] != change[1] else 2
            mpo.save(nn.Sequential(layer), tmp_path)
            with torch.device("meta"):
                architecture = nn.Sequential(nn.Linear(6, 8))
            with pytest.raises(MPOError, match=f"0.{name} must hold {message}"):
                mpo.load(tmp_path, architecture)
    low = InterpolativeLinear(6, 8, 2)
    low.place[0] = 99
    mpo.save(nn.Sequential(low), tmp_path)
    with pytest.raises(MPOError, match="0.place must hold each index"):
        mpo.load(tmp_path, architecture)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs rows=, columns= or both"),
        ({"rows": torch.arange(7)}, "rows must be 8 indices"),
        ({"rows": torch.arange(8.0)}, "rows must be 8 indices"),
        ({"columns": torch.tensor([0, 1, 2, 3, 4, 4])}, "columns must hold each index"),
        ({"columns": torch.tensor([0, 1, 2, 3, 4, -1])}, "columns must hold each index"),
    ],
)
def test_what_is_no_order(arguments, message):
    with pytest.raises(MPOError, match=message):
        PermutedLinear(MPOLinear(6, 8, max_bond=2, bias=False), **arguments)


def test_what_cannot_be_permuted():
    with pytest.raises(MPOError, match="got Linear"):
        PermutedLinear(nn.Linear(6, 8), rows=ROWS)
    with pytest.raises(MPOError, match="an MPOLinear, got InterpolativeLinear"):
        PermutedLinear(InterpolativeLinear(6, 8, 2, bias=False), rows=ROWS)
    with pytest.raises(MPOError, match="must have no bias; give bias="):
        PermutedLinear(MPOLinear(6, 8, max_bond=2), rows=ROWS)
    with pytest.raises(MPOError, match="got x of shape"):
        layer_of()(torch.zeros(2, 8, dtype=torch.float64))
