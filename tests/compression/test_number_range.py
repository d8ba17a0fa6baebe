"""Calibration and reports with weights, inputs and gradients of any size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain.arrays import relative_distance
from mpochain.nn.embeddings.fitting import fit_rows


def _net(scale, dtype=torch.float32):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 24, bias=False), nn.Linear(24, 8, bias=False)).to(dtype)
    net[0].weight.data *= scale
    return net


@pytest.mark.parametrize(
    "method", ["interpolative", "svd_llm", "search", "calibrated_kronecker", "tt_svd", "kronecker"]
)
def test_the_scale_of_data_weights_and_loss_changes_no_relative_error(method):
    torch.manual_seed(1)
    x = torch.randn(80, 16)
    reports = []
    for weight, data, loss in ((1.0, 1.0, 1.0), (2.0**-80, 2.0**90, 2.0**-95), (2.0**40, 2.0**-110, 2.0**80)):
        net = _net(weight)
        batches = [x[:40] * data, x[40:] * data]
        weights = torch.randn(40, 8, generator=torch.Generator().manual_seed(2))
        report = mpo.compress(
            net, 0.8, calibration=batches, method=method, loss=lambda y, factor=loss * weights: (y * factor).sum()
        )
        reports.append(report)
        assert all(parameter.isfinite().all() for parameter in net.parameters())
    for report in reports[1:]:
        for record, expected in zip(report.layers, reports[0].layers, strict=True):
            assert record.form == expected.form
            assert record.weight_error == pytest.approx(expected.weight_error, rel=2e-2)
            if expected.output_error is not None:
                assert record.output_error == pytest.approx(expected.output_error, rel=2e-2, abs=1e-6)
    assert any(record.weight_error > 0.01 for record in reports[0].layers)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 2.0**15), (torch.bfloat16, 2.0**120)])
def test_short_types_near_their_limits(dtype, largest):
    for scale in (largest, 2.0**-20 if dtype == torch.float16 else 2.0**-110):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(32, 32, bias=False)).to(dtype)
        weight = torch.randn(32, 32).clamp(-1, 1)
        net[0].weight.data.copy_(weight * scale)
        exact = net[0].weight.detach().double()
        for method in ("tt_svd", "svd", "kronecker"):
            copy = nn.Sequential(nn.Linear(32, 32, bias=False)).to(dtype)
            copy.load_state_dict(net.state_dict())
            report = mpo.compress(copy, 0.6, method=method)
            assert all(parameter.isfinite().all() for parameter in copy.parameters())
            assert 0.1 < report.layers[0].weight_error < 0.9
            measured = (copy[0].double().weight.detach() - exact).norm() / exact.norm()
            assert report.layers[0].weight_error == pytest.approx(measured.item(), rel=0.02)


def test_an_overflow_is_told_apart_from_numbers_that_are_not_finite():
    net = _net(1.0, torch.float64)
    x = torch.randn(8, 16, dtype=torch.float64)
    arguments = {"method": "svd_llm", "loss": None}
    with pytest.raises(mpo.MPOError, match="the squares of the inputs of 0 exceed float64"):
        mpo.compress(net, 0.8, calibration=[x * 1e200], **arguments)
    with pytest.raises(mpo.MPOError, match="the inputs of 0 contain NaN"):
        mpo.compress(net, 0.8, calibration=[x * math.nan], **arguments)
    for scale in (1e200, 1e-200):
        with pytest.raises(mpo.MPOError, match=r"0: the weight has norm .* whose square exceeds float64"):
            mpo.compress(_net(scale, torch.float64), "5% error", method="tt_svd")


def test_a_form_that_its_type_cannot_hold_is_refused():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16, bias=False)).half()
    net[0].weight.data.copy_(torch.randn(16, 16).sign() * 65504.0)
    x = torch.randn(64, 16).half() * 1e-5
    with pytest.raises(mpo.MPOError, match=r"0: the compressed form of its weight exceeds the range of torch.float16"):
        mpo.compress(net, 0.5, calibration=[x], loss=lambda y: y.square().sum(), method="interpolative")


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e37), (torch.float32, 1e-38), (torch.float64, 1e150)])
def test_tables_of_any_size_are_fitted_alike(dtype, scale):
    torch.manual_seed(0)
    table = torch.randn(12, 8, dtype=torch.float64).clamp(-2, 2)
    errors = []
    for factor, kind in ((1.0, torch.float64), (scale, dtype)):
        embedding = nn.Embedding(12, 8, dtype=kind)
        embedding.weight = nn.Parameter((table * factor).to(kind))
        trains = mpo.TokenTrainEmbedding.from_embedding(embedding, 1)
        torch.manual_seed(1)
        units = mpo.EntangledEmbedding(12, 8, order=3, ranks=2, dtype=kind)
        units.reset_parameters(factor)
        chain = mpo.MPOEmbedding(12, 8, max_bond=2, dtype=kind)
        chain.reset_parameters(factor)
        assert fit_rows(chain, embedding.weight, iterations=4).error < 1
        fit = fit_rows(units, embedding.weight, iterations=8)
        assert fit.error == pytest.approx(_distance(units.weight, table * factor), rel=1e-4)
        errors.append([fit.error, _distance(trains.weight, table * factor)])
    np.testing.assert_allclose(errors[1], errors[0], rtol=2e-2)


def _distance(weight, table):
    return relative_distance(table.double(), weight.detach().double())
