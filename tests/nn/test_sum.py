"""A sum of layers is its dense matrix, however it is run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain import InterpolativeLinear, MPOError, MPOLinear, SumLinear
from mpochain.nn.layer import layer_of as layer_of_entry
from mpochain.surgery import learning_rate_scales

BATCHES = [(1,), (6,), (0,), (), (2, 1, 3)]


def layer_of(bias="low rank", dtype=torch.float64):
    torch.manual_seed(0)
    low = InterpolativeLinear(6, 8, 2, bias=bias == "low rank", dtype=dtype)
    return SumLinear(
        [low, MPOLinear(6, 8, out_dims=(4, 2), in_dims=(2, 3), max_bond=2, bias=bias == "chain", dtype=dtype)]
    )


@pytest.mark.parametrize("lead", BATCHES)
@pytest.mark.parametrize("bias", ["low rank", "chain", "none"])
def test_values_and_gradients_are_those_of_the_dense_matrix(lead, bias):
    layer = layer_of(bias)
    x = torch.randn(*lead, 6, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    assert (layer.bias is None) is (bias == "none")
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.to_linear()(x), expected)
    weights = torch.randn_like(expected)
    wanted = (x, *layer.parameters())
    for mine, theirs in zip(
        torch.autograd.grad((layer(x) * weights).sum(), wanted),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("bias", ["low rank", "chain", "none"])
def test_fast_execution_keeps_one_matrix_that_is_never_old(bias):
    layer, x = layer_of(bias), torch.randn(5, 6, dtype=torch.float64)
    mpo.set_execution(nn.Sequential(layer), cache=True)

    def check():
        with torch.no_grad():
            for _ in range(2):
                expected = nn.functional.linear(x, layer.weight, layer.bias)
                torch.testing.assert_close(layer(x), expected)

    check()
    assert layer._kept._found[2].shape == (8, 6)
    for parameter in layer.parameters():
        with torch.no_grad():
            parameter.add_(1)
        check()
    layer(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_compile_and_export():
    layer, x = layer_of(), torch.randn(5, 6, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    torch.testing.assert_close(program.module()(x[:3]), layer(x[:3]))


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


def test_its_description_makes_it_again():
    layer = layer_of("chain")
    empty = layer_of_entry(layer.entry().model_dump(), (8, 6), "up")
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in layer.state_dict().items()}


def test_what_is_no_sum():
    low = InterpolativeLinear(6, 8, 2)
    for parts, message in (
        ([low], "two parts at least"),
        ([low, nn.Linear(6, 8)], "got Linear"),
        ([low, InterpolativeLinear(8, 6, 2, bias=False)], "one shape"),
        ([low, MPOLinear(6, 8, max_bond=1)], "only one part"),
    ):
        with pytest.raises(MPOError, match=message):
            SumLinear(parts)
    with pytest.raises(MPOError, match="got x of shape"):
        layer_of()(torch.zeros(2, 8, dtype=torch.float64))
