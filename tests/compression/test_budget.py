"""Budgets as a user writes them: sizes of the saved model, refused early if out of reach, named if they do not bind."""

from __future__ import annotations

import copy
import logging
import re

import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain.compression import METHODS, Target
from mpochain.errors import ArgumentError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(300, 32), nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 48))


def saved(model, folder):
    return sum(file.stat().st_size for file in mpo.save(model, folder).glob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["svd", "tt_svd", "kronecker"])
def test_a_size_is_that_of_the_file(model, tmp_path, dtype, method):
    model = model.to(dtype)
    dense = saved(model, tmp_path / "dense")
    budget = dense - 6000 * dtype.itemsize
    mpo.compress(model, f"{budget}B", method=method)
    size = saved(model, tmp_path / "small")
    assert size <= budget
    assert size > budget - 1500 * dtype.itemsize - 1200, "nor much smaller than allowed"


def test_layers_of_several_types_share_a_size(model, tmp_path):
    model[3].half()
    model[2] = nn.Sequential(nn.ReLU(), HalfPrecision())
    dense = saved(model, tmp_path / "dense")
    report = mpo.compress(model, f"{dense - 8000}B", method="svd")
    assert dense - 11_000 < saved(model, tmp_path / "small") <= dense - 8000
    assert {layer.bytes_before // layer.parameters_before for layer in report.layers} == {2, 4}


class HalfPrecision(nn.Module):
    def forward(self, x):
        return x.half()


@pytest.mark.parametrize("bits", [4, 7.5])
def test_bits_per_weight(model, bits):
    report = mpo.compress(model, f"{bits} bits", method="svd")
    assert report.bits_per_weight == 8 * report.bytes_after / report.parameters_before <= bits
    assert report.bits_per_weight > bits - 1.5
    assert f"{report.bits_per_weight:.2f} bits per weight" in report.summary()
    assert f"({report.bits_per_weight:.2f} bits per weight)" in report.table()
    assert sum(layer.bits_per_weight * layer.parameters_before for layer in report.layers) == 8 * report.bytes_after


def test_a_size_of_layers(model):
    report = mpo.compress(model, "20kB of layers", method="svd")
    assert sum(layer.bytes_after for layer in report.layers) <= 20_000
    assert report.parameters_after > 4000


@pytest.mark.parametrize(
    ("method", "budget"),
    [
        *((name, 0.0001) for name, method in METHODS.items() if method.linear),
        *((name, budget) for name in ("svd", "auto") for budget in ("39kB", "100B of layers", "0.3 bits")),
    ],
)
def test_out_of_reach_is_refused_before_the_data_with_what_is_reachable(model, method, budget):
    def unread():
        pytest.fail("the data were read")
        yield

    class Unread:
        def __iter__(self):
            return unread()

    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match="is out of reach") as error:
        mpo.compress(model, budget, method=method, calibration=Unread())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    least = re.search(r"the smallest reachable is ([\d.,]+\w*%?(?: of layers| bits)?)", str(error.value))[1].replace(
        ",", ""
    )
    reachable = float(least[:-1]) / 100 if least.endswith("%") else least
    data = [torch.randint(300, (4, 8))]
    mpo.compress(model, reachable, method=method, calibration=data)


def test_the_rest_of_the_model_is_named(model):
    with pytest.raises(ArgumentError, match=r"of which 0\.04 MB are outside of the layers to compress"):
        mpo.compress(model, "39kB", method="svd")


@pytest.mark.parametrize("budget", [1.0, "1MB", "50kB of layers"])
def test_a_budget_that_does_not_bind_says_so(model, budget, caplog):
    with caplog.at_level(logging.WARNING, logger="mpochain"):
        report = mpo.compress(model, budget, method="svd")
    assert f"budget {budget} does not bind: it allows" in caplog.text
    assert f"budget {budget} does not bind" in str(report)
    assert {layer.form for layer in report.layers} == {"dense"}


@pytest.mark.parametrize(
    "method", ["interpolative", "search", "svd", "tt_svd", "kronecker", "permuted_kronecker", "rtn", "gptq", "auto"]
)
def test_the_smallest_form_is_the_cheapest_choice(method):
    way = METHODS[method]
    for shape in ((8, 8), (16, 4), (4, 16), (1, 5), (7, 3)):
        target = Target.open("layer", nn.Linear(*shape))
        choices = way.prepare(target, None)
        assert way.smallest(target) == choices.costs.bytes.min()
