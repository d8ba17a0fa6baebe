"""The second budget of a compression: a share of the layers' multiply-adds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain.compression import METHODS, Target, open_state
from mpochain.compression.limit import Limit
from mpochain.errors import ArgumentError, CheckpointError


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.fixture
def data():
    return [torch.randn(400, 64, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("speed", [0.7, "70%"])
def test_it_may_be_the_only_budget(net, data, speed):
    report = mpo.compress(net, None, calibration=data, speed=speed)
    assert 0.65 * report.macs_before < report.macs_after <= 0.7 * report.macs_before
    assert report.as_dict()["macs_after"] == sum(layer.macs_after for layer in report.layers)
    assert f"speed {speed}" in str(report)
    assert f"({report.macs_after / report.macs_before:.1%})" in str(report)


def test_both_budgets_hold(net, data):
    report = mpo.compress(net, 0.8, calibration=data, speed=0.5)
    assert report.macs_after <= 0.5 * report.macs_before
    assert report.bytes_after <= report.allowed_bytes == int(0.8 * report.bytes_before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speed": 1.5}, "speed 1.5 is out of range; give the share of the layers' multiply-adds"),
        ({"speed": 0}, "speed 0 is out of range"),
        ({"speed": True}, "speed True is not a share"),
        ({"speed": "fast"}, "speed 'fast' is not a share"),
        ({"speed": 0.01}, r"speed 0.01 is out of reach: .* these 3 layers to [\d.]+%; give at least that"),
        ({"budget": "5% error", "speed": 0.5}, "takes no second budget, got speed=0.5; give a share"),
        (
            {"budget": 0.5, "speed": 0.5, "method": "svd"},
            "method 'svd' give every layer the same, so it takes no second",
        ),
        ({"speed": 0.5, "method": "chains"}, "no method 'chains'"),
        ({}, "needs a budget, got none"),
    ],
)
def test_what_cannot_be_met_is_refused(net, data, arguments, message):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ArgumentError, match=message):
        mpo.compress(net, **{"budget": None, "calibration": data, **arguments})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_embeddings_have_no_multiply_adds():
    with pytest.raises(ArgumentError, match="their rows are looked up"):
        Limit.of(None, *_table(), speed=0.5)


def _table():
    model = nn.Sequential(nn.Embedding(20, 16))
    return model, METHODS["interpolative"], {"0": Target.open("0", model[0])}


def test_it_identifies_a_run(net, data, tmp_path):
    mpo.compress(net, None, calibration=data, speed=0.7, checkpoint=tmp_path)
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))
    with pytest.raises(CheckpointError, match=r"speed was 0\.7 and is now 0\.6"):
        open_state(tmp_path, fresh, None, calibration=data, speed=0.6)
