"""Losses: the default by the kind of output, and losses that do not reach the layers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

import mpochain as mpo
from mpochain import MPOError
from mpochain.compression import METHODS
from mpochain.compression.statistics.default_loss import DefaultLoss


def net(outputs, *last):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, outputs), *last)


def rows():
    return torch.randn(300, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("last", [[], [nn.Flatten(0)], [nn.Sigmoid()]])
def test_one_output_keeps_its_value(last):
    model, x = net(1, *last), rows()
    expected = model(x).detach()
    report = mpo.compress(model, 0.9, calibration=[x])
    assert report.loss == "squared error of the output (1 feature)"
    assert "loss that weights the outputs: squared error" in report.table()
    assert report.layers[0].loss_increase > 0
    assert float((model(x).detach() - expected).norm() / expected.norm()) < 0.2


@pytest.mark.parametrize("outputs", [2, 3, 8])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_a_regression_keeps_its_values(outputs, scale):
    x, noise = rows(), torch.randn(300, outputs, generator=torch.Generator().manual_seed(2))
    errors = []
    for loss in (None, lambda y: (y * noise).sum() / scale):  # the second is a squared error
        model = net(outputs)
        with torch.no_grad():
            model[2].weight.mul_(scale)
            model[2].bias.mul_(scale)
            expected = model(x)
        mpo.compress(model, 0.8, calibration=[x], loss=loss)
        errors.append(float((model(x).detach() - expected).norm() / expected.norm()))
    assert 0 < errors[0] < 1.2 * errors[1]


class Named(nn.Module):
    """Wraps a net so that its output has a name."""

    def __init__(self, inner, wrap, **config):
        super().__init__()
        self.inner, self.wrap, self.config = inner, wrap, SimpleNamespace(**config)

    def forward(self, x):
        return self.wrap(self.inner(x))


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (lambda: net(7), "cross-entropy and squared error of the output (7 classes or features)"),
        (lambda: net(7, nn.Softmax(-1)), "cross-entropy of the output (7 classes, read as probabilities)"),
        (lambda: net(16), "squared error of the output (16 features)"),  # the shape of the input
        (lambda: Named(net(7), nn.functional.normalize), "squared error of the output (7 features)"),
        (lambda: Named(net(7), lambda y: {"logits": y, "state": "s"}), "cross-entropy of logits (7 classes)"),
        (lambda: Named(net(7), lambda y: {"last_hidden_state": y}), "squared error of last_hidden_state (7 features)"),
        (
            lambda: Named(net(7), lambda y: SimpleNamespace(start_logits=y, end_logits=-y)),
            "cross-entropy of start_logits (7 classes); cross-entropy of end_logits (7 classes)",
        ),
        (
            lambda: Named(net(7), lambda y: {"logits": y}, problem_type="multi_label_classification"),
            "binary cross-entropy of logits (7 labels)",
        ),
        (
            lambda: Named(net(7), lambda y: (y.sum(), y)),
            "cross-entropy and squared error of the output (7 classes or features)",
        ),
        (lambda: Named(net(7), lambda y: y.square().sum()), "the output itself, a scalar"),
        (lambda: Named(net(8), lambda y: y.view(-1, 2, 2, 2)), "squared error of the output (2 features)"),
    ],
)
def test_the_loss_suits_the_output(model, loss):
    report = mpo.compress(model(), 0.9, calibration=[rows()])
    assert report.loss == loss
    assert any(layer.form != "dense" and layer.loss_increase > 0 for layer in report.layers)


def test_its_gradients_are_those_of_a_regression():
    """Noise of the outputs' size: E[g g^T] is the identity over their mean square."""
    y = (3 * torch.randn(20000, 1)).requires_grad_()
    DefaultLoss(nn.Identity())(y).backward()
    assert float(y.grad.square().mean()) == pytest.approx(1 / float(y.detach().square().mean()), rel=0.05)


def test_hidden_states_and_pooler_of_an_encoder():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    report = mpo.compress(transformers.BertModel(config), 0.8, calibration=[torch.randint(30, (4, 12))])
    assert report.loss == (
        "squared error of last_hidden_state (16 features); squared error of pooler_output (16 features)"
    )
    assert all(layer.reason is None for layer in report.layers)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda y: y.detach().sum(), "no gradient of the loss reached it; the loss does not depend"),
        (lambda y: y.sum() * 0, "the gradient of the loss is zero there; the loss does not depend"),
        (lambda y: torch.ones((), requires_grad=True), "no gradient of the loss reached it"),
        (lambda y: y.sum() * float("nan"), "calibration batch 1: the loss is nan"),
        (lambda y: y.sum(-1), "must return a scalar tensor, summed over tokens, got a tensor of shape"),
        (lambda y: 3.0, "must return a scalar tensor, summed over tokens, got float"),
        (lambda y: (y * 0).sqrt().sum(), "batch 1: the gradients of .* contain NaN or infinite"),
    ],
)
def test_losses_without_a_use(loss, message):
    with pytest.raises(MPOError, match=message):
        mpo.compress(net(7), 0.8, calibration=[rows()], loss=loss)


class Parts(nn.Module):
    """Layers that some losses or batches do not reach."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.out, self.side, self.spare = (nn.Linear(*s) for s in ((16, 32), (32, 8), (32, 32), (16, 16)))

    def forward(self, x):
        hidden = torch.tanh(self.up(x))
        return {"logits": self.out(hidden), "attentions": self.side(hidden)}


@pytest.mark.parametrize("method", [name for name, way in METHODS.items() if way.linear and "permuted" not in name])
def test_layers_that_nothing_reaches_stay_dense_within_the_budget(method, caplog):
    model, x = Parts(), rows()
    needs = METHODS[method].needs
    report = mpo.compress(model, 0.8, calibration=[x], method=method)
    unreached = {"nothing": [], "inputs": ["spare"], "gradients": ["side", "spare"]}[needs]
    assert [layer.name for layer in report.layers if layer.reason] == unreached
    assert all(isinstance(model.get_submodule(name), nn.Linear) for name in unreached)
    assert report.bytes_after <= 0.8 * report.bytes_before
    assert report.layers[0].form != "dense"
    if needs != "nothing":
        assert "stays dense: spare: no calibration batch reached it" in report.table()
        assert "layers stay dense" in caplog.text
        with pytest.raises(MPOError, match="out of reach"):
            mpo.compress(Parts(), 0.1, calibration=[x], method=method)


@pytest.mark.parametrize("targets", [["up", "spare"], ["up", "re:sp.*"]])
def test_unreached_layers_that_were_asked_for_are_errors(targets):
    with pytest.raises(MPOError, match=r"spare is chosen by '.*' in targets=, but no calibration batch reached it"):
        mpo.compress(Parts(), 0.75, calibration=[rows()], targets=targets)
    report = mpo.compress(Parts(), 0.75, calibration=[rows()], targets=["Linear"])
    assert len(report.layers) == 4
