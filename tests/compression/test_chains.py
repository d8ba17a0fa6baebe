"""Chains of a spec for each layer."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import mpochain as mpo
from mpochain import ChainSpec, MPOError
from mpochain.compression import Chains, method_named
from mpochain.errors import ArgumentError, SpecError

UP, DOWN = ChainSpec((6, 4), (4, 4), 3), ChainSpec((4, 2), (6, 4), 2)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def test_each_layer_is_the_chain_of_its_spec():
    model = network()
    expected = [mpo.MPOLinear.from_linear(model[k], spec) for k, spec in ((0, UP), (2, DOWN))]
    report = mpo.compress(model, None, method=Chains(specs={"re:.*": DOWN, "0": UP}))
    assert (report.method, report.parameters_after) == ("chains", UP.parameters + DOWN.parameters)
    for layer, same in zip((model[0], model[2]), expected, strict=True):
        torch.testing.assert_close(layer.weight, same.weight)
        assert torch.equal(layer.bias, same.bias)


def test_chains_that_are_fitted_to_data_keep_more_of_the_outputs():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(400, 16, generator=generator) @ torch.diag(torch.logspace(0, -2, 16))
    target = network()(inputs)
    losses = {}
    for calibrated in (False, True):
        model = network()
        method = Chains(specs={"0": UP, "2": DOWN}, calibrated=calibrated)
        report = mpo.compress(model, None, method=method, calibration=[inputs])
        losses[report.method] = F.mse_loss(model(inputs), target).item()
    assert losses["calibrated_chains"] < 0.9 * losses["chains"]
    up, down = report.layers
    assert up.output_error < up.weight_error
    assert up.loss_increase is None
    assert down.loss_increase > 0


def test_a_recipe_gives_specs_as_plain_data():
    settings = json.loads(json.dumps({"specs": {"re:[02]": UP.as_dict()}}))
    method = method_named("mpochain.compression:Chains", settings)
    assert method.settings.specs == {"re:[02]": UP}


@given(bond=st.integers(1, 30))
def test_a_layer_that_would_not_become_smaller_stays_dense(bond):
    model = nn.Sequential(nn.Linear(16, 24))
    spec = ChainSpec((6, 4), (4, 4), bond)
    report = mpo.compress(model, None, method=Chains(specs={"0": spec}))
    assert isinstance(model[0], nn.Linear) is (spec.parameters >= 16 * 24)
    assert report.parameters_after == min(spec.parameters, 16 * 24)


def test_embeddings_without_data():
    model = nn.Sequential(nn.Embedding(24, 16))
    mpo.compress(model, None, targets=["0"], method=Chains(specs={"0": UP}))
    assert model(torch.tensor([3, 5])).shape == (2, 16)
    assert model[0].num_embeddings == 24


@pytest.mark.parametrize(
    ("specs", "error", "message"),
    [
        ({"0": UP}, ArgumentError, "2 has no spec; add one to specs=, or leave the layer out with ignore="),
        ({"0": DOWN, "2": DOWN}, SpecError, "0 is a 24x16 matrix, but its spec is 8x24"),
        ({"0": UP, "2": DOWN, "re:3": UP}, ArgumentError, "specs= has 're:3', which is the spec of no layer here"),
    ],
)
def test_specs_that_do_not_fit_the_layers(specs, error, message):
    with pytest.raises(error, match=message):
        mpo.compress(network(), None, method=Chains(specs=specs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Chains: specs is missing"),
        ({"specs": {}}, "specs: .*at least 1"),
        ({"specs": {"re:[": UP}}, "is not a regular expression"),
        ({"specs": {"0": {"out_dims": [2]}}}, "specs.0"),
        ({"specs": {"0": UP}, "iterations": 0}, "iterations: "),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(MPOError, match=message):
        Chains(**settings)


def test_there_is_no_budget_to_give():
    with pytest.raises(MPOError, match="leave no choice, so it takes no budget"):
        mpo.compress(network(), 0.5, method=Chains(specs={"re:.*": UP}))
