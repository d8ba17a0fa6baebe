"""Whether calibration data were enough: rows per input, data set aside, and how far they were read."""

from __future__ import annotations

import logging

import pytest
import torch
from tied_net import TiedNet
from torch import nn

import mpochain as mpo
from mpochain import MPOError
from mpochain.compression.statistics import passes
from mpochain.compression.statistics.passes import batches_for
from mpochain.language.text import spare_windows, windows


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 6))


def rows(count, seed):
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "few"), [(119, True), (120, False)])
def test_too_few_rows_are_said_with_the_number_wanted(count, few, caplog):
    report = mpo.compress(net(), 0.7, calibration=[rows(count, 1)], method="svd_llm")
    assert {layer.rows for layer in report.layers} == {count}
    assert report.layers[0].rows_per_input == count / 24
    message = "0 has 119 calibration rows for 24 inputs (4.9 per input); give 120 or more (5 per input)"
    for text in (report.table(), " ".join(str(report).split()), caplog.text):  # print breaks long lines
        assert (message in text) is few
        assert ("2 other layers have too few as well" in text) is few


def test_data_set_aside_show_too_little_calibration():
    aside = [rows(200, 5)]
    held = {}
    for count in (20, 2000):
        model = net()
        held[count] = mpo.compress(model, 0.7, calibration=[rows(count, 1)], held_out=aside).held_out
        assert held[count].rows == 200
        expected, after = net()(aside[0]).detach(), model(aside[0]).detach()
        assert held[count].held_out == pytest.approx(float((expected - after).norm() / expected.norm()), rel=1e-4)
    assert held[20].held_out > 1.5 * held[20].calibration
    assert held[2000].held_out < 1.2 * held[2000].calibration
    assert held[2000].held_out < held[20].held_out
    assert str(held[20]).startswith("relative error of the output: ")
    report = mpo.compress(net(), 0.7, calibration=[rows(20, 1)], held_out=aside, loss=lambda y: y.sum(), dry_run=True)
    assert report.held_out is None
    with pytest.raises(MPOError, match="held_out must be a list of batches, got one Tensor"):
        mpo.compress(net(), 0.7, calibration=[rows(20, 1)], held_out=aside[0])


def test_data_set_aside_of_a_model_with_a_tied_head():
    torch.manual_seed(0)
    model = TiedNet()
    tokens = [torch.randint(11, (4, 9)) for _ in range(3)]
    expected = model(tokens[2]).log_softmax(-1).detach()
    report = mpo.compress(model, 0.6, calibration=tokens[:2], held_out=tokens[2:])
    assert report.held_out.rows == 36
    assert str(report.held_out).startswith("divergence from the dense model's predictions, in nats per row: ")
    after = model(tokens[2]).log_softmax(-1).detach()
    divergence = float((expected.exp() * (expected - after)).sum(-1).mean())
    assert report.held_out.held_out == pytest.approx(divergence, rel=1e-4)
    assert model.head.weight is model.embedding.weight
    assert not isinstance(model.left, nn.Linear)


def test_windows_set_aside_are_others():
    tokens = torch.arange(100)
    used = {int(part[0, 0]) for part in windows(tokens, 10, 4)}
    spare = {int(part[0, 0]) for part in spare_windows(tokens, 10, 4, 3)}
    assert len(spare) == 3
    assert not used & spare
    assert spare_windows(tokens, 10, None, 3) == []


def test_progress_says_how_many_batches_there_are(caplog, monkeypatch):
    monkeypatch.setattr(passes, "_INTERVAL", -1.0)
    method = mpo.compression.METHODS["svd_llm"]
    with caplog.at_level(logging.INFO, logger="mpochain"):
        assert list(batches_for([1, 2], method)) == [1, 2]
        unknown = batches_for(type("Stream", (), {"__iter__": lambda self: iter([1, 2, 3])})(), method)
        assert list(unknown) == list(unknown) == [1, 2, 3]
    assert [message.partition(", about")[0] for message in caplog.messages] == [
        *("calibration batch 1 of 2", "calibration batch 2 of 2"),
        *("calibration batch 1", "calibration batch 2", "calibration batch 3"),
        *("calibration batch 1 of 3", "calibration batch 2 of 3", "calibration batch 3 of 3"),
    ]
    assert "about 0 s left" in caplog.text
