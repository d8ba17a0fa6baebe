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
from mpochain.nn.interpolative_kept import KeptFactors
from mpochain.quantization import Scheme

BATCHES = [(1,), (6,), (0,), (), (2, 1, 3), (70,), (2, 40)]


def layer_of(out=9, in_=7, rank=3, bias=True, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((out, rank), (rank, in_)))
    offset = torch.randn(out, generator=generator, dtype=dtype) if bias else None
    return InterpolativeLinear.from_interpolation(interpolative(left, right), offset), left @ right


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
        layer.coefficients.weight.mul_(2)
    check(layer)
    other, _ = layer_of(rank=rank, seed=1)
    layer.load_state_dict(other.state_dict())
    check(layer)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    layer(x).square().sum().backward()
    optimizer.step()
    check(layer)
    layer.rows.weight = nn.Parameter(torch.randn_like(layer.rows.weight))
    check(layer)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    with torch.no_grad():
        copied.rows.weight.add_(1)
    check(copied)
    check(layer)
    check(layer.float().double())
    values = {f"{name}.weight": torch.randn_like(layer.get_submodule(name).weight) for name in ("rows", "coefficients")}
    with torch.no_grad():
        found = torch.func.functional_call(layer, values, (x,))
        torch.testing.assert_close(found, torch.func.functional_call(layer.set_execution(), values, (x,)))
    with pytest.raises(MPOError, match="'compact' or 'fast'"):
        layer.set_execution(memory="huge")


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rank", [10, 210, 350, 400])
@pytest.mark.parametrize("bias", [True, False])
def test_fast_execution_of_any_number_of_rows(rank, dtype, bias, packs, monkeypatch):
    monkeypatch.setattr(mpo.execution.packed, "is_faster_than_mkl", lambda: packs)
    layer = InterpolativeLinear(400, 500, rank, bias=bias)
    torch.nn.init.normal_(layer.coefficients.weight, std=0.1)  # large coefficients lose digits of two bytes
    layer.place.copy_(torch.randperm(500))
    layer.to(dtype).set_execution(cache=True)
    matrix, offset = (None if each is None else each.detach().double() for each in (layer.weight, layer.bias))
    accuracy = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    for in_order in (False, True):
        with torch.no_grad():
            if in_order:
                order = torch.argsort(layer.place)
                layer.place.copy_(torch.arange(500))
                layer.set_execution(cache=True)
                matrix, offset = matrix[order], None if offset is None else offset[order]
                if bias:
                    layer.bias.copy_(offset)
            for shape in ((1,), (), (3,), (2, 40), (1,), (513,), (2, 3, 200), (0,)):
                x = torch.randn(*shape, 400, dtype=dtype)
                found, expected = layer(x), nn.functional.linear(x.double(), matrix, offset)
                assert found.dtype == dtype
                torch.testing.assert_close(found.double(), expected, rtol=accuracy, atol=accuracy * 3)


def test_fast_execution_keeps_what_gains_time(monkeypatch):
    monkeypatch.setattr(mpo.execution.packed, "is_faster_than_mkl", lambda: False)
    with torch.no_grad():
        for rank, kept in ((10, KeptFactors), (210, type(None)), (300, torch.Tensor)):
            layer = InterpolativeLinear(400, 500, rank).set_execution(cache=True)
            layer(torch.ones(400))
            assert isinstance(layer._kept._entry[2], kept)
    assert layer._kept._entry[2].shape == (500, 400)


@pytest.mark.parametrize("cache", [False, True])
def test_places_changed_behind_the_back_of_torch(cache):
    layer, _ = layer_of(20, 10, 4)
    layer.place.copy_(torch.arange(20))
    layer.set_execution(cache=cache)
    x = torch.randn(3, 10, dtype=torch.float64)
    with torch.no_grad():
        layer(x)
        if cache:
            layer.load_state_dict({"place": torch.randperm(20)}, strict=False)
        else:
            layer.place.numpy()[:] = torch.randperm(20).numpy()
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("rank", [350, 50])
def test_places_loaded_after_a_call_in_fast_execution(rank):
    layer = InterpolativeLinear(400, 500, rank).set_execution(cache=True)
    x = torch.randn(3, 400)
    with torch.no_grad():
        layer(x)
        layer.load_state_dict({"place": torch.randperm(500)}, strict=False)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)


def test_recordings_do_not_read_places():
    from torch.fx.experimental.proxy_tensor import make_fx

    layer, _ = layer_of()
    x = torch.randn(3, 7, dtype=torch.float64)
    with torch.no_grad():
        for mode in ("real", "fake", "symbolic"):
            graph = make_fx(lambda x: layer(x), tracing_mode=mode, _allow_non_fake_inputs=True)(x)
            torch.testing.assert_close(graph(x), layer(x))


def test_products_of_a_faster_library_are_asked_for_many_rows(monkeypatch):
    layer, seen = InterpolativeLinear(64, 96, 24), []
    monkeypatch.setattr(mpo.execution.kernels.onednn, "_pays", lambda *arguments: seen.append(arguments) is not None)
    with torch.no_grad(), mpo.execution.kernels.onednn.OneDNNProducts():
        layer(torch.randn(1024, 64))
    assert len(seen) == 2


def test_fast_execution_under_autocast_and_with_forward_derivatives():
    layer = InterpolativeLinear(400, 500, 50).set_execution(cache=True)
    for dtype in (torch.float32, torch.bfloat16):
        x, direction = torch.randn(2, 3, 400)
        with torch.no_grad():
            expected = layer(x).to(dtype)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                torch.testing.assert_close(layer(x), expected, rtol=0.05, atol=0.05)
                assert layer(x).dtype == dtype
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        y = layer(torch.autograd.forward_ad.make_dual(x, direction))
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, direction @ layer.weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 30, 60])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [511, 512, 1025])
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-9), (torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_outputs_written_in_blocks_are_those_of_the_matrix(rank, bias, rows, dtype, accuracy):
    layer, W = layer_of(70, 60, rank, bias)
    x = torch.randn(60, rows, dtype=torch.float64).t()  # not contiguous
    expected = nn.functional.linear(x, W, layer.bias)
    layer, x = layer.to(dtype), x.to(dtype)
    with torch.no_grad():
        found = layer(x)
    assert found.is_contiguous()
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=accuracy * expected.abs().max().item())
    # The same numbers where autograd records, and within torch.inference_mode.
    torch.testing.assert_close(layer(x).detach(), found, rtol=0, atol=accuracy * expected.abs().max().item())
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), found, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [3, 600])
def test_forward_derivatives_of_many_rows(rows):
    layer, W = layer_of(40, 30, 8)
    x, direction = torch.randn(2, rows, 30, dtype=torch.float64)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        y = layer(torch.autograd.forward_ad.make_dual(x, direction))
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, direction @ W.T)


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
        ((4, 3, 4), "rank 4 exceeds the smaller side"),
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


def test_its_parameters_learn_at_one_rate():
    layer, _ = layer_of()
    assert mpo.surgery.learning_rate_scales(nn.Sequential(layer, nn.Linear(9, 2))) == {}


class Doubled(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return 2 * self.inside(x)


def _replaced(layer):
    layer.rows = Doubled(layer.rows)


def _hooked(layer):
    layer.coefficients.register_forward_hook(lambda module, inputs, output: 2 * output)


def _own_forward(layer):
    forward = layer.rows.forward
    layer.rows.forward = lambda x: 2 * forward(x)


def _parametrised(layer):
    nn.utils.parametrize.register_parametrization(layer.rows, "weight", Doubled(nn.Identity()))


def _another_type(layer):
    class Other(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer.rows.__class__ = Other


@pytest.mark.parametrize("alter", [_replaced, _hooked, _own_forward, _parametrised, _another_type])
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("rows", [2, 70])
def test_factors_that_do_more_than_multiply_are_called(alter, cache, rows):
    layer, matrix = layer_of(rank=3)
    layer.set_execution(cache=cache)
    x = torch.randn(rows, 7, dtype=torch.float64)
    with torch.no_grad():
        layer(x)
        alter(layer)
        expected = nn.functional.linear(x, 2 * matrix, layer.bias)
        for _ in range(2):
            y = layer(x)
            if alter is _hooked:
                kept = layer.place < 3
                torch.testing.assert_close(y[:, ~kept], expected[:, ~kept])
                assert not torch.allclose(y[:, kept], expected[:, kept])
            else:
                torch.testing.assert_close(y, expected)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        torch.testing.assert_close(mpo.to_dense(layer)(x), y)
    assert not layer.can_reorder()
    with pytest.raises(MPOError, match="expected plain torch.nn.Linear"):
        layer.reset_parameters()
    total = mpo.SumLinear([layer, mpo.MPOLinear(7, 9, max_bond=2, bias=False, dtype=torch.float64)])
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(
                total.set_execution(cache=cache)(x), nn.functional.linear(x, total.weight, total.bias)
            )


def test_a_factor_that_drops_inputs_in_training_has_one_matrix():
    layer, matrix = layer_of()
    layer.rows = nn.Sequential(nn.Dropout(0.5), layer.rows)
    torch.testing.assert_close(layer.train().weight, matrix)
    assert layer.rows[0].training


def test_no_module_that_quantisers_look_for_is_without_rows():
    layer = InterpolativeLinear(7, 5, 5)
    assert [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)] == ["rows"]
    assert layer.state_dict()["coefficients.weight"].shape == (0, 5)
    x = torch.randn(3, 7)
    _replaced(layer)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("form", ["alone", "in a sum", "in codes", "sum in codes"])
def test_state_dicts_with_former_names_load(form):
    def built():
        layer = InterpolativeLinear(70, 48, 6)
        if "sum" in form:
            layer = mpo.SumLinear([layer, mpo.MPOLinear(70, 48, max_bond=2, bias=False)])
        return nn.Sequential(mpo.QuantizedParts.of(layer, Scheme(4)) if "codes" in form else layer)

    model, other = built(), built()
    former = {name.replace("rows.weight", "rows"): value for name, value in model.state_dict().items()}
    former = {name.replace("coefficients.weight", "coefficients"): value for name, value in former.items()}
    assert former.keys() != model.state_dict().keys()
    other.load_state_dict(former)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
    former["0.rows.weight"] = former["0.other"] = torch.zeros(6, 70)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*0\.other"):
        other.load_state_dict(former)


def test_its_factors_are_no_targets_of_another_compression():
    model = nn.Sequential(InterpolativeLinear(64, 64, 16), nn.ReLU(), nn.Linear(64, 64))
    with pytest.raises(MPOError, match="'0.rows' is part of a compressed layer"):
        mpo.compress(model, 0.5, method="svd", targets=["0.rows"])
    report = mpo.compress(model, 0.5, method="svd", targets=["Linear"])
    assert [layer.name for layer in report.layers] == ["2"]
    with pytest.raises(MPOError, match="its layers are already compressed"):
        mpo.compress(nn.Sequential(model[0]), 0.5, method="svd")


def test_tuning_changes_nothing_on_a_cpu():
    layer, matrix = layer_of(bias=False)
    layer.set_execution(autotune=True)
    torch._dynamo.reset()
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        for lead in BATCHES:
            x = torch.randn(*lead, 7, dtype=torch.float64)
            torch.testing.assert_close(run(x), x @ matrix.t(), rtol=1e-9, atol=1e-9)
