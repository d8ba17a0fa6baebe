"""Weights without information: every method gives layers that can be trained and report their true error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain.compression import METHODS, Chains
from mpochain.nn import CompressedLayer

LINEAR = [name for name, method in METHODS.items() if method.linear]


def _weights():
    torch.manual_seed(0)
    half = torch.randn(16, 16)
    half[:8], half[:, 3] = 0.0, 0.0
    return {
        "zero": torch.zeros(16, 16),
        "constant": torch.full((16, 16), 0.3),
        "rank_one": torch.outer(torch.randn(24), torch.randn(16)),
        "zero_rows_and_columns": half,
        "one_entry": torch.zeros(16, 16).index_put((torch.tensor(3), torch.tensor(5)), torch.tensor(2.0)),
        "one_output": torch.randn(1, 16),
        "wide_zero": torch.zeros(8, 16),
    }


class Degenerate(nn.Module):
    """Layers of degenerate weights that read the same input, and one that reads a single number."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict()
        for name, weight in _weights().items():
            self.layers[name] = nn.Linear(16, len(weight))
            self.layers[name].weight.data.copy_(weight)
        self.one_input = nn.Linear(1, 16)

    def forward(self, x):
        outputs = [layer(x) for layer in self.layers.values()]
        return torch.cat([*outputs, self.one_input(x[:, :1])], dim=1)


@pytest.mark.parametrize("method", LINEAR)
def test_degenerate_linear_layers_can_be_trained_and_state_their_errors(method):
    net = Degenerate()
    dense = {name: module.weight.detach().double() for name, module in net.named_modules() if hasattr(module, "weight")}
    torch.manual_seed(1)
    x = torch.randn(64, 16)
    report = mpo.compress(net, 0.9, calibration=[x], method=method, loss=lambda y: y.square().sum())
    goal = torch.randn(64, net(x).shape[1])
    (net(x) - goal).square().mean().backward()
    compressed = {name: module for name, module in net.named_modules() if isinstance(module, CompressedLayer)}
    for record in report.layers:
        if record.form == "dense":
            continue
        assert record.reason is None
        layer = compressed[record.name]
        weight = layer.weight.detach().double()
        assert weight.isfinite().all()
        difference, scale = (weight - dense[record.name]).norm(), dense[record.name].norm()
        expected = float(difference / scale) if scale else float(difference)
        assert record.weight_error == pytest.approx(expected, rel=1e-6, abs=1e-12)
        for error in (record.output_error, record.loss_increase):
            assert error is None or math.isfinite(error)
        trained = [
            parameter for name, parameter in layer.named_parameters() if "bias" not in name and parameter.numel()
        ]
        largest = [parameter.grad.abs().max() for parameter in trained]
        assert max(largest) > 1e-6, f"{record.name} cannot be trained"


def test_a_zero_layer_learns_as_well_as_a_random_one():
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    goal = x @ torch.randn(16, 2) @ torch.randn(2, 16)
    for method in (
        "tt_svd",
        "kronecker",
        "permuted_kronecker",
        "svd",
        Chains(specs={"0": mpo.ChainSpec((2, 2, 4), (4, 2, 2), 6)}),
    ):
        net = nn.Sequential(nn.Linear(16, 16, bias=False))
        nn.init.zeros_(net[0].weight)
        settled = isinstance(method, Chains)
        mpo.compress(net, None if settled else 0.8, method=method)
        assert not net[0].weight.detach().any()
        start = (net(x) - goal).square().mean().item()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
        for _ in range(150):
            loss = (net(x) - goal).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.6 * start, method


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.embeddings])
def test_degenerate_tables_can_be_trained(method):
    for table in (torch.zeros(24, 16), torch.ones(24, 16), torch.eye(24)[:, :16] * torch.arange(24)[:, None].gt(7)):
        net = nn.Sequential(nn.Embedding(24, 16))
        net[0].weight.data.copy_(table)
        if method == "rtn" and not table.any():
            with pytest.raises(mpo.MPOError, match="codes of zeros could never learn"):
                mpo.compress(net, 0.9, targets=["Embedding"], method=method)
            continue
        report = mpo.compress(net, 0.9, targets=["Embedding"], method=method)
        if report.layers[0].form == "dense":
            continue
        ids = torch.arange(24)
        out = net(ids)
        assert out.isfinite().all()
        error = (out.detach() - table).norm() / (table.norm() or 1.0)
        assert report.layers[0].weight_error == pytest.approx(float(error), rel=1e-3, abs=1e-6)
        torch.manual_seed(0)
        for row in range(24):
            net.zero_grad()
            (net(ids[row : row + 1]) - torch.randn(1, 16)).square().sum().backward()
            trained = [parameter.grad for parameter in net.parameters() if parameter.numel()]
            # In codes, a row of zeros stays zero: its scales multiply nothing.
            if report.method != "rtn" or table[row].any():
                assert any(bool(gradient.any()) for gradient in trained), f"row {row} cannot be trained"


@pytest.mark.parametrize("method", [name for name in LINEAR if "permuted" not in name])
def test_a_layer_that_cannot_become_smaller_stays_dense_with_its_reason(method):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    gate = nn.Sequential(nn.Linear(32, 1))
    model = nn.ModuleList([net, gate])
    model.forward = lambda x: torch.cat([net(x), gate(x)], 1)
    torch.manual_seed(0)
    report = mpo.compress(model, 0.7, calibration=[torch.randn(64, 32)], method=method, loss=lambda y: y.square().sum())
    assert report.bytes_after <= 0.7 * report.bytes_before
    dense = [layer for layer in report.layers if layer.form == "dense"]
    reasons = {layer.name: layer.reason for layer in dense if layer.reason}
    if method not in ("tt_svd", "rtn", "gptq", "auto"):  # a row of 32 entries as a 4x8 matrix of low rank, or in codes
        assert "1.0" in reasons
        assert f": {reasons['1.0']}" in report.table()


@pytest.mark.parametrize("method", ["svd", "svd_llm", "interpolative", "search", "kronecker"])
def test_a_model_of_layers_that_cannot_become_smaller_is_answered_clearly(method):
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    arguments = {"calibration": [torch.randn(20, 1)], "method": method, "loss": lambda y: y.square().sum()}
    with pytest.raises(
        mpo.MPOError, match=rf"method '{method}' cannot make any of the 2 layers smaller \(0: .*; choose"
    ):
        mpo.compress(net, 0.5, **arguments)
    report = mpo.compress(net, 1.0, **arguments)
    assert [layer.form for layer in report.layers] == ["dense", "dense"]
    assert all(layer.reason for layer in report.layers)


def test_a_budget_that_dense_layers_exceed_names_them():
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    for method in ("svd", "interpolative"):
        with pytest.raises(mpo.MPOError, match=r"1 of 2 layers cannot become smaller: 2; leave them out"):
            mpo.compress(net, 0.05, calibration=[torch.randn(9, 8)], method=method, loss=lambda y: y.square().sum())
