"""Codes trained as latent numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mpochain import InterpolativeLinear
from mpochain.nn import QuantizedLinear, QuantizedParts
from mpochain.nn.quantized import latent_codes
from mpochain.quantization import Scheme


def layers():
    torch.manual_seed(0)
    quantised = QuantizedLinear(40, 24, Scheme(3, group=32), dtype=torch.float32)
    symmetric = QuantizedLinear(24, 24, Scheme(2, group=16, symmetric=True), bias=False)
    parts = QuantizedParts.of(InterpolativeLinear(24, 16, rank=8), {"rows": Scheme(4, group=8)})
    return nn.Sequential(quantised, symmetric, parts)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_nothing_changes_without_training():
    model, x = layers(), torch.randn(5, 40)
    before, expected = state(model), model(x)
    with latent_codes(model) as names:
        assert len(names) == 3
        torch.testing.assert_close(model(x), expected)
        own = dict(model.named_parameters())
        assert not any(own[name].requires_grad for name in names.values())
    assert state(model).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())


def test_numbers_begin_near_the_dense_weight_and_round_to_the_same_codes():
    torch.manual_seed(0)
    linear = nn.Linear(40, 24)
    layer = QuantizedLinear.from_linear(linear, Scheme(3, group=32))
    before = layer.codes().codes
    with latent_codes(layer, {layer: linear.weight}):
        scales = layer.weight_scale.detach()[:, torch.arange(40) // 32]
        zeros = layer.weight_zero_point.float()[:, torch.arange(40) // 32]
        nearer = ((layer.weight_latent - zeros) * scales - linear.weight).abs().mean()
        assert nearer < 0.1 * (layer.weight - linear.weight).abs().mean()
    assert torch.equal(layer.codes().codes, before)


def test_a_scale_of_zero_moves_nothing():
    layer = QuantizedLinear(8, 4, Scheme(4))
    with torch.no_grad():
        layer.weight_scale.zero_()
    before = layer.codes().codes
    with latent_codes(layer, {layer: torch.randn(4, 8)}):
        assert layer.weight_latent.isfinite().all()
    assert torch.equal(layer.codes().codes, before)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_training_moves_codes_towards_wanted_outputs(index):
    """After the context the layer computes what it did within it."""
    layer = layers()[index].requires_grad_(False)
    torch.manual_seed(1)
    x, other = torch.randn(200, layer.in_features), copy.deepcopy(layer)
    with latent_codes(other) as names:
        for name in names.values():
            latent = dict(other.named_parameters())[name]
            latent += (torch.rand_like(latent) < 0.2) * torch.randn_like(latent).sign()
    wanted = other(x)
    before = float((layer(x) - wanted).square().mean())
    with latent_codes(layer) as names:
        trained = [dict(layer.named_parameters())[name].requires_grad_(True) for name in names.values()]
        optimizer = torch.optim.Adam(trained, lr=0.05)
        for _ in range(40):
            optimizer.zero_grad()
            (layer(x) - wanted).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            within = layer(x)
    torch.testing.assert_close(layer(x), within)
    assert float((within - wanted).square().mean()) < 0.3 * before
