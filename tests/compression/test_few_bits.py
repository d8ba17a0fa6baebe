"""Layers in few bits: uniform bits by rounding, and form, rank and bits of each layer under one budget."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain.compression import METHODS, Auto, Gptq, Rtn, Target, collect_moments
from mpochain.compression.methods.few_bits import dense_in_bits, interpolative_in_bits
from mpochain.compression.methods.rounding_metric import RoundingMetric
from mpochain.compression.statistics.loss_metric import LossMetric
from mpochain.errors import ArgumentError
from mpochain.quantization import Scheme


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 96), nn.Tanh(), nn.Linear(96, 70, bias=False), nn.Tanh(), nn.Linear(70, 9))


@pytest.fixture(scope="module")
def data():
    """Inputs of a few strong directions, as a trained model's are."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(48, 48, generator=generator) * torch.logspace(0, -2, 48)
    return [torch.randn(300, 48, generator=generator) @ mixing.T for _ in range(2)]


@pytest.fixture(scope="module")
def moments(net, data):
    layers = {name: net[int(name)] for name in ("0", "2")}
    loss = lambda y: y.square().sum() / 2  # noqa: E731
    return collect_moments(net, layers, data, loss=loss, inputs=layers, outputs=layers)


def stored(model, folder):
    return sum(file.stat().st_size for file in mpo.save(model, folder).glob("*.safetensors"))


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("auto", torch.float32), ("auto", torch.bfloat16), ("gptq", torch.bfloat16), ("rtn", torch.float32)],
)
def test_the_file_is_within_the_budget(net, data, tmp_path, method, dtype):
    model, data = copy.deepcopy(net).to(dtype), [batch.to(dtype) for batch in data]
    dense = stored(model, tmp_path / "dense")
    budget = dense - int(
        (0.86 if dtype == torch.float32 else 0.72) * sum(parameter.nbytes for parameter in model.parameters())
    )
    mpo.compress(model, f"{budget}B", calibration=data, method=method)
    size = stored(model, tmp_path / "small")
    assert size <= budget
    if method == "auto":
        assert size > budget - 2500, "nor much smaller: the header is bounded, and a step of a layer is small"
    again = mpo.load(tmp_path / "small", copy.deepcopy(net).to(dtype))
    torch.testing.assert_close(again(data[0]), model(data[0]))


@pytest.mark.parametrize("bits", [2.0, 4.5])
def test_bits_hold_the_layers_exactly(net, data, bits):
    model = copy.deepcopy(net)
    report = mpo.compress(model, f"{bits} bits", calibration=data)
    weights = [module for name, module in model.named_children() if name in "024"]
    held = sum(
        tensor.nbytes for layer in weights for name, tensor in layer.state_dict().items() if not name.endswith("bias")
    )
    assert report.method == "auto"
    assert held == report.bytes_after <= report.allowed_bytes == int(bits * report.parameters_before / 8)
    assert "method auto (the default of this kind of budget)" in str(report)


def test_a_share_keeps_the_method_it_had(net, data):
    assert mpo.compress(copy.deepcopy(net), 0.5, calibration=data).method == "interpolative"


@pytest.mark.parametrize(("budget", "bits"), [("9 bits", 8), ("7.9 bits", 4), ("4 bits", 3), ("0.09", 2), (1.0, None)])
def test_uniform_bits_are_the_most_that_fit(net, budget, bits):
    """Of layers whose groups differ in length, so that the same bits take other shares of their weights."""
    report = mpo.compress(copy.deepcopy(net), float(budget) if budget == "0.09" else budget, method="rtn")
    form = "dense" if bits is None else f"{bits} bits in groups of 128"
    assert {layer.form for layer in report.layers} == {form}


@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_given_bits_take_no_budget(net, data, name):
    way = METHODS[name].with_settings(bits=3, group=24, symmetric=True)
    report = mpo.compress(copy.deepcopy(net), None, method=way, calibration=data)
    assert report.layers[0].form == "3 bits in groups of 24, symmetric"
    assert report.layers[0].bytes_after == Scheme(3, 24, symmetric=True).bytes(96, 48)
    with pytest.raises(ArgumentError, match="takes no budget"):
        mpo.compress(copy.deepcopy(net), 0.5, method=way, calibration=data)


def test_each_method_loses_less_than_the_one_before(net, data):
    lost = {}
    expected = net(data[0]).detach()
    for name in ("rtn", "gptq", "auto"):
        model = copy.deepcopy(net)
        mpo.compress(model, "3.9 bits", calibration=data, method=name, loss=lambda y: y.square().sum() / 2)
        lost[name] = float((model(data[0]) - expected).detach().norm())
    assert lost["auto"] < lost["gptq"] < lost["rtn"]


def dense_choices(target, moments, schemes, factor):
    return dense_in_bits(target, moments, schemes, RoundingMetric(target, moments), factor)


def low_rank_choices(target, moments, schemes, factor, rank_factor=None):
    metric = RoundingMetric(target, moments)
    return interpolative_in_bits(target, moments, schemes, metric, factor, rank_factor or factor)


@pytest.mark.parametrize("form", [dense_choices, low_rank_choices])
@pytest.mark.parametrize("name", ["0", "2"])
def test_announced_errors_are_those_of_the_layers(net, moments, name, form):
    """Those of the rank, and of rounding at the ranks and bits that were tried; the others lie between them."""
    target = Target.open(name, net[int(name)])
    schemes = [Scheme(bits, 24) for bits in (2, 3, 4, 8)]
    metric = LossMetric.of(target.weight, moments[name])
    choices, again = (form(target, moments[name], schemes, 3.0) for _ in range(2))
    assert np.array_equal(choices.errors, again.errors), "it may be prepared twice"
    assert choices.zero_error == pytest.approx(3.0 * metric.error(target.weight), rel=1e-4)
    ratios = []
    for choice in range(0, len(choices) - 1, 1 if form is dense_choices else 5):
        built = choices.build(choice)
        error = 3.0 * metric.error(target.weight - built.layer.weight.detach())
        assert built.errors.loss == pytest.approx(error, rel=1e-3)
        ratios.append(choices.errors[choice] / error)
        numbers = built.layer.numbers()
        assert (numbers.parameters, numbers.bytes, numbers.macs) == tuple(
            getattr(choices.costs, cost)[choice] for cost in ("parameters", "bytes", "macs")
        )
    assert 0.1 < min(ratios) <= max(ratios) < 10
    assert sorted(ratios)[len(ratios) // 2] == pytest.approx(1, rel=0.3)


def test_the_rank_has_a_factor_of_its_own(net, moments):
    target = Target.open("0", net[0])
    one, other = (low_rank_choices(target, moments["0"], [Scheme(8)], 1.0, factor) for factor in (1.0, 5.0))
    for choice in (0, 2):
        assert 4.5 < other.errors[choice] / one.errors[choice] < 5, "8 bits add next to nothing"
        built = [choices.build(choice).errors.loss for choices in (one, other)]
        assert 3.5 < built[1] / built[0] < 5


def test_ranks_are_multiples_of_8_and_forms_can_be_chosen(net, moments):
    target = Target.open("0", net[0])
    low = Auto(forms=["interpolative"], bits=[4]).prepare(target, moments["0"])
    assert [low.build(choice).layer.layer.rank for choice in range(len(low) - 1)] == [8, 16, 24, 32, 40]
    dense = Auto(forms=["dense"], bits=[3], groups=[16, 48]).prepare(target, moments["0"])
    assert [dense.build(choice).layer.form() for choice in range(2)] == [
        "3 bits in groups of 16",
        "3 bits in groups of 48",
    ]
    assert len(dense) == 3


def test_the_smallest_choice_is_known_before_the_data(net, data):
    with pytest.raises(ArgumentError, match=r"the smallest reachable is ([\d.]+) bits\. Give at least that") as error:
        mpo.compress(copy.deepcopy(net), "0.2 bits", calibration=None)
    least = str(error.value).partition("is ")[2].partition("the smallest reachable is ")[2].partition(" bits")[0]
    report = mpo.compress(copy.deepcopy(net), f"{least} bits", calibration=data)
    assert report.bits_per_weight <= float(least)


def test_both_budgets_are_held_by_rank_and_bits(net, data):
    """Few bits hold the bytes, low rank the multiply-adds; with bytes alone fewer layers are of low rank."""
    model = copy.deepcopy(net)
    report = mpo.compress(model, "4.5 bits", speed=0.6, calibration=data)
    assert report.macs_after <= 0.6 * report.macs_before
    assert report.bits_per_weight <= 4.5
    assert any("interpolative" in layer.form for layer in report.layers)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (Rtn, {"bits": 5}, "bits"),
        (Rtn, {"group": 0}, "group"),
        (Gptq, {"bits": "3"}, "bits"),
        (Gptq, {"symmetric": 3}, "symmetric"),
        (Auto, {"bits": []}, "bits"),
        (Auto, {"bits": [4, 6]}, "bits"),
        (Auto, {"groups": [0]}, "a group has at least one column, got 0"),
        (Auto, {"forms": ["chain"]}, "forms"),
        (Auto, {"forms": ()}, "forms"),
    ],
)
def test_settings_that_are_not_offered(method, settings, message):
    with pytest.raises(ArgumentError, match=message):
        method(**settings)


@pytest.mark.parametrize("method", ["rtn", "gptq", "auto"])
def test_weights_beyond_the_range_of_scales_stay_dense_with_the_reason(data, method):
    model = nn.Sequential(nn.Linear(48, 32), nn.Linear(32, 16))
    with torch.no_grad():
        model[1].weight.mul_(1e-12)
    report = mpo.compress(model, "24 bits", calibration=data, method=method, loss=lambda y: (1e12 * y).square().sum())
    assert report.layers[1].form == "dense"
    assert "too small for float16 scales" in report.layers[1].reason
