"""The interpolative layer is its dense matrix, however it is run."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain import InterpolativeLinear, MPOError
from mpochain.decomposition import interpolative

BATCHES = [(1,), (6,), (0,), (), (2, 1, 3), (70,), (2, 40)]


def layer_of(out=9, in_=7, rank=3, bias=True, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((out, rank), (rank, in_)))
    offset = torch.randn(out, generator=generator, dtype=dtype) if bias else None
    return InterpolativeLinear.from_interpolation(interpolative(left, right), offset), left @ right


@pytest.mark.parametrize("lead", BATCHES)
@pytest.mark.parametrize("bias", [True, False])
def test_values_are_those_of_the_dense_matrix(lead, bias):
    layer, W = layer_of(bias=bias)
    x = torch.randn(*lead, 7, dtype=torch.float64)
    expected = nn.functional.linear(x, W, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.weight, W)
    torch.testing.assert_close(layer.to_linear()(x), expected)


@pytest.mark.parametrize("lead", BATCHES)
@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("bias", [True, False])
def test_fast_execution_is_the_same(lead, rank, bias):
    layer, W = layer_of(rank=rank, bias=bias)
    assert mpo.set_execution(nn.Sequential(layer), cache=True) == 1
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(*lead, 7, dtype=torch.float64)
            torch.testing.assert_close(layer(x), nn.functional.linear(x, W, layer.bias))
    x.requires_grad_()
    layer(x).sum().backward()
    assert layer.rows.grad.shape == layer.rows.shape


@pytest.mark.parametrize("rank", [1, 6])
def test_what_fast_execution_keeps_is_never_old(rank):
    layer, _ = layer_of(rank=rank)
    layer.set_execution(cache=True)
    x = torch.randn(5, 7, dtype=torch.float64)

    def check(changed):
        with torch.no_grad():
            torch.testing.assert_close(changed(x), nn.functional.linear(x, changed.weight, changed.bias))

    check(layer)
    with torch.no_grad():
        layer.coefficients.mul_(2)
    check(layer)
    other, _ = layer_of(rank=rank, seed=1)
    layer.load_state_dict(other.state_dict())
    check(layer)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    layer(x).square().sum().backward()
    optimizer.step()
    check(layer)
    layer.rows = nn.Parameter(torch.randn_like(layer.rows))
    check(layer)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    with torch.no_grad():
        copied.rows.add_(1)
    check(copied)
    check(layer)
    check(layer.float().double())
    values = {"rows": torch.randn_like(layer.rows), "coefficients": torch.randn_like(layer.coefficients)}
    with torch.no_grad():
        found = torch.func.functional_call(layer, values, (x,))
        torch.testing.assert_close(found, torch.func.functional_call(layer.set_execution(), values, (x,)))
    with pytest.raises(MPOError, match="'compact' or 'fast'"):
        layer.set_execution(memory="huge")


@pytest.mark.parametrize(("rank", "columns"), [(10, 10), (200, 300)])
def test_fast_execution_of_a_large_layer(rank, columns):
    layer = InterpolativeLinear(300, 400, rank).set_execution(cache=True)
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(3, 300)
            expected = nn.functional.linear(x, layer.weight, layer.bias)
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert layer._to_keep().shape == (400, columns)


def test_inputs_that_are_not_contiguous():
    layer, W = layer_of()
    x = torch.randn(7, 5, dtype=torch.float64).T
    torch.testing.assert_close(layer(x), x @ W.T + layer.bias)


def test_gradients():
    layer, _ = layer_of()
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    rows, coefficients, bias = (each.detach().requires_grad_() for each in layer.parameters())

    def run(x, rows, coefficients, bias):
        values = {"rows": rows, "coefficients": coefficients, "bias": bias}
        return torch.func.functional_call(layer, values, (x,))

    assert torch.autograd.gradcheck(run, (x, rows, coefficients, bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_element_types(dtype):
    layer, W = layer_of(dtype=torch.float32)
    layer = layer.to(dtype)
    assert layer.place.dtype == torch.int32, "an index is no float"
    y = layer(torch.ones(2, 7, dtype=dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), (W.sum(1) + layer.bias.float()).expand(2, -1), rtol=0.05, atol=0.1)


def test_compile_and_export():
    layer, _ = layer_of()
    x = torch.randn(5, 7, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    torch.testing.assert_close(program.module()(x[:3]), layer(x[:3]))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layer, W = layer_of(64, 48, 12)
        x = torch.randn(100, 48, dtype=torch.float64)
        torch.testing.assert_close(layer(x), x @ W.T + layer.bias)
    finally:
        torch.set_num_threads(before)


def test_its_state_is_all_of_it():
    layer, _ = layer_of()
    other = InterpolativeLinear(7, 9, 3, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 7, dtype=torch.float64)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_initial_weights_have_the_deviation_of_a_dense_layer():
    torch.manual_seed(0)
    layer = InterpolativeLinear(256, 512, 64, bias=False)
    assert layer.weight.std().item() == pytest.approx(nn.Linear(256, 512).weight.std().item(), rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 1), "in_features must be"),
        ((4, 4, True), "rank must be"),
        ((4, 3, 4), "rank 4 is over the smaller side"),
    ],
)
def test_wrong_sizes(arguments, message):
    with pytest.raises(MPOError, match=message):
        InterpolativeLinear(*arguments)


def test_a_model_made_dense_again():
    layer, _ = layer_of()
    chain = mpo.MPOLinear(9, 7, max_bond=2, dtype=torch.float64)
    model = nn.ModuleDict({"a": nn.Sequential(layer, nn.ReLU(), chain), "again": layer, "and again": layer})
    x = torch.randn(3, 7, dtype=torch.float64)
    expected = model["a"](x)
    dense = mpo.to_dense(model)
    assert dense is model
    assert [type(m) for m in model["a"]] == [nn.Linear, nn.ReLU, nn.Linear]
    assert model["again"] is model["and again"] is model["a"][0], "one layer in several places stays one"
    torch.testing.assert_close(model["a"](x), expected)
    assert type(mpo.to_dense(chain)) is nn.Linear


def test_wrong_inputs():
    layer, _ = layer_of()
    with pytest.raises(MPOError, match="got x of shape"):
        layer(torch.zeros(2, 8, dtype=torch.float64))
    with pytest.raises(MPOError, match="the bias must have shape"):
        InterpolativeLinear.from_interpolation(interpolative(torch.ones(3, 1), torch.ones(1, 2)), torch.zeros(2))


def test_autocast_answers_in_the_type_that_a_dense_layer_answers_in():
    layer, _ = layer_of(dtype=torch.float32)
    x = torch.randn(5, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(x), layer.to_linear()(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.1)
    assert layer.bias.dtype == torch.float32


def test_its_parameters_learn_at_one_rate():
    layer, _ = layer_of()
    assert mpo.surgery.learning_rate_scales(nn.Sequential(layer, nn.Linear(9, 2))) == {}
