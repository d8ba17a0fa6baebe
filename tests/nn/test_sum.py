"""A sum of layers is its dense matrix, however it is run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain import InterpolativeLinear, MPOError, MPOLinear, SumLinear
from mpochain.surgery import learning_rate_scales

BATCHES = [(1,), (6,), (0,), (), (2, 1, 3)]


def layer_of(bias="low rank", dtype=torch.float64):
    torch.manual_seed(0)
    low = InterpolativeLinear(6, 8, 2, bias=bias == "low rank", dtype=dtype)
    return SumLinear(
        [low, MPOLinear(6, 8, out_dims=(4, 2), in_dims=(2, 3), max_bond=2, bias=bias == "chain", dtype=dtype)]
    )


def test_what_handles_layers_handles_sums():
    layer, x = layer_of(), torch.randn(3, 6, dtype=torch.float64)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert mpo.set_execution(layer, cache=True) == 1
    torch.testing.assert_close(layer(x), expected)
    assert set(learning_rate_scales(layer)) == {"parts.1.core_0_0", "parts.1.core_0_1"}
    assert layer.macs() == layer.parts[0].macs() + layer.parts[1].spec.macs()
    assert "6 -> 8, bias=True" in repr(layer)
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 2, dtype=torch.float64))
    dense = mpo.to_dense(model)
    assert [type(each) for each in dense] == [nn.Linear, nn.ReLU, nn.Linear]
    torch.testing.assert_close(dense[0](x), expected)
    assert type(mpo.to_dense(layer)) is nn.Linear
    before = layer.weight.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)


def test_what_is_no_sum():
    low = InterpolativeLinear(6, 8, 2)
    for parts, message in (
        ([low], "at least two parts"),
        ([low, nn.Linear(6, 8)], "got Linear"),
        ([low, InterpolativeLinear(8, 6, 2, bias=False)], "same shape"),
        ([low, MPOLinear(6, 8, max_bond=1)], "only one part"),
    ):
        with pytest.raises(MPOError, match=message):
            SumLinear(parts)
    with pytest.raises(MPOError, match="got x of shape"):
        layer_of()(torch.zeros(2, 8, dtype=torch.float64))
