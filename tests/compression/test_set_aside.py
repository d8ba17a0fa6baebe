"""Data set aside from the fit: one of four batches, which judges what the others fitted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import mpochain as mpo
from mpochain.compression import Auto, Interpolative, Target, collect_moments
from mpochain.compression.methods.rounding_metric import RoundingMetric
from mpochain.compression.statistics import damping, passes
from mpochain.compression.statistics.damping import best_damped_fit
from mpochain.compression.statistics.loss_metric import LossMetric
from mpochain.compression.statistics.projections import fit, losses
from mpochain.compression.statistics.store import MomentStore
from mpochain.quantization import Scheme, two_sided


def loss(output):
    return output.square().sum() / 2


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 16))


@pytest.fixture(scope="module")
def batches():
    """Few rows, so that a fit follows them."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(24, 24, generator=generator) * torch.logspace(0, -2, 24)
    return [torch.randn(4, 24, generator=generator) @ mixing.T for _ in range(12)]


def parted(net, batches, names=("0", "2")):
    """Moments of each layer, of what was set aside in ``held_out``, as a pass collects them."""
    targets = {name: Target.open(name, net[int(name)]) for name in names}
    with MomentStore(on_disk=True) as store:
        passes.gather_moments(net, targets, batches, Auto(), store, loss=loss)
        return {name: store.get(name) for name in names}


def equal(one, other):
    assert one.rows == other.rows
    for own, expected in zip(one.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(own, expected)


def test_every_fourth_batch_is_set_aside(net, batches):
    moments = parted(net, batches)
    layers = {name: net[int(name)] for name in moments}
    for part, own in (("held_out", batches[3::4]), ("fit", [b for k, b in enumerate(batches, 1) if k % 4])):
        expected = collect_moments(net, layers, own, loss=loss, inputs=layers, outputs=layers)
        for name, both in moments.items():
            alone = passes.replace(both, held_out=None) if part == "fit" else both.held_out
            equal(alone, expected[name])
    assert moments["0"].rows_read == 48


@pytest.mark.parametrize("kind", ["few", "a stream", "a data loader"])
def test_few_batches_and_those_that_may_come_in_another_order_are_all_fitted(net, batches, kind):
    class Stream:
        def __iter__(self):
            return iter(batches)

    loader = DataLoader(batches, batch_size=None, shuffle=True)
    data = {"few": batches[:7], "a stream": Stream(), "a data loader": loader}[kind]
    for given in (data, passes.batches_for(data, Auto())):
        moments = parted(net, given)["0"]
        assert moments.held_out is None
        assert moments.judging is moments
        assert moments.rows == (28 if kind == "few" else 48)


def test_a_list_is_divided_with_its_progress_logged(net, batches):
    assert parted(net, passes.batches_for(batches, Auto()))["0"].held_out.rows == 12


def test_masks_that_leave_nothing_of_what_is_set_aside(net, batches, caplog):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, attention_mask):
            return self.net(x)

    data = [(batch[None], torch.full((1, 4), int(k % 4 > 0))) for k, batch in enumerate(batches, 1)]
    model = Masked()
    targets = {"net.0": Target.open("net.0", net[0])}
    with MomentStore(on_disk=False) as store:
        passes.gather_moments(model, targets, data, Auto(), store, loss=loss)
        moments = store.get("net.0")
    assert moments.held_out is None
    assert moments.rows == 36
    assert "set aside" in caplog.text


@pytest.mark.parametrize(("method", "budget"), [("interpolative", 0.6), ("auto", "3.5 bits")])
def test_reported_errors_are_those_of_data_set_aside(net, batches, method, budget):
    model = copy.deepcopy(net)
    report = mpo.compress(model, budget, calibration=batches, method=method, loss=loss)
    moments = parted(net, batches)
    factor = {"interpolative": (1.0, 1.0), "auto": (1.0, 4.0)}[method]
    changed = 0
    for record in report.layers:
        dense, small = net[int(record.name)].weight.detach(), model[int(record.name)].weight.detach()
        error = LossMetric.of(dense, moments[record.name].held_out).error(dense - small)
        assert factor[0] * error * 0.999 <= record.loss_increase <= factor[1] * error * 1.001
        assert record.rows == 48
        changed += record.form != "dense"
    assert changed


def test_low_rank_takes_the_damping_that_loses_least_on_data_set_aside(net, batches):
    moments = parted(net, batches)["0"]
    weight = net[0].weight.detach()
    chosen, _ = best_damped_fit(weight, moments)
    lost = {
        damping: losses(fit(weight, moments, damping=damping), weight, moments.held_out)[[5, 10, 14, 19]]
        for damping in (0.03, 0.1, 0.3, 1.0)
    }
    assert chosen == min(lost, key=lambda damping: float(torch.tensor(lost[damping]).log().mean()))
    target = Target.open("0", net[0])
    choices = Interpolative().prepare(target, moments)
    assert choices.errors[9] == pytest.approx(lost[chosen][1])
    assert choices.build(9).errors.loss == pytest.approx(choices.errors[9], rel=1e-4)


def test_rounding_is_damped_by_what_was_chosen_for_low_rank(net, batches):
    moments = parted(net, batches)["2"]
    target = Target.open("2", net[2])
    metric = RoundingMetric(target, moments)
    assert metric.damping == 3 * best_damped_fit(target.weight, moments)[0]
    assert metric.judging.inputs is moments.held_out.inputs
    inputs, outputs = metric.triangles()
    short = two_sided(target.weight, Scheme(3, 128), inputs, outputs)
    built = Auto(forms=["dense"], bits=[3]).prepare(target, moments).build(0)
    assert torch.equal(built.layer.weight, short.dequantized())
    assert RoundingMetric(target, passes.replace(moments, held_out=None)).damping == 1.0


def test_an_interrupted_run_goes_on_with_what_was_set_aside(net, batches, tmp_path):
    with MomentStore(on_disk=False, folder=tmp_path) as store:
        targets = {"0": Target.open("0", net[0])}
        passes.gather_every(net, [targets], batches, Auto(), store, loss=loss)
        expected = store.get("0")
    with MomentStore(on_disk=False, folder=tmp_path) as store:
        assert store.resume(targets)
        equal(store.get("0"), expected)
        assert store.get("0").held_out.rows == 12


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_second_fit_takes_the_damping_of_the_first(net, batches, monkeypatch, on_disk):
    """A layer whose fit is not kept until it is built is fitted again, with the same result to the bit."""
    offered = []
    fits = damping.damped_fits

    def counted(weight, moments, dampings):
        offered.append(len(dampings))
        return fits(weight, moments, dampings)

    monkeypatch.setattr(damping, "damped_fits", counted)
    with MomentStore(on_disk=on_disk) as store:
        targets = {"0": Target.open("0", net[0])}
        passes.gather_every(net, [targets], batches, Interpolative(), store, loss=loss)
        first, again = (best_damped_fit(net[0].weight, store.get("0")) for _ in range(2))
    assert offered == [4]
    assert first[0] == again[0]
    assert all(torch.equal(getattr(first[1], side), getattr(again[1], side)) for side in ("left", "right"))


def test_layers_that_stay_dense_are_not_fitted_again(net, batches, monkeypatch):
    prepared = []
    prepare = Interpolative.prepare

    def counted(self, target, moments):
        prepared.append(target.name)
        return prepare(self, target, moments)

    monkeypatch.setattr(Interpolative, "prepare", counted)
    monkeypatch.setattr(passes, "_SHARE", 0.0)
    monkeypatch.setattr(passes, "_LEAST_BYTES", 1)
    model = copy.deepcopy(net)
    report = mpo.compress(model, 0.95, calibration=batches, loss=loss, method=Interpolative())
    dense = [record.name for record in report.layers if record.form == "dense"]
    assert len(dense) == 1
    assert sorted(prepared) == sorted(["0", "2", *({"0", "2"} - set(dense))])
