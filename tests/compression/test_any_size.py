"""Fits that are kept once, and models of any size that are cut from them."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mpochain as mpo
from mpochain.compression.state_files import read_sealed, write_sealed
from mpochain.errors import ArgumentError, CheckpointError, OutputError

WIDTHS = [24, 40, 40, 12]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    layers = [part for pair in itertools.pairwise(WIDTHS) for part in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 24, generator=generator) * torch.logspace(0, -2, 24) for _ in range(8)]


def loss(output):
    return output.square().sum() / 2


@pytest.fixture(scope="module")
def fits(net, batches, tmp_path_factory):
    before = copy.deepcopy(net)
    folder = mpo.score(net, tmp_path_factory.mktemp("any") / "fits", calibration=batches, loss=loss)
    for one, other in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other), "scoring changes nothing"
    return folder


@settings(max_examples=12, deadline=None)
@given(budget=st.floats(0.2, 0.95), speed=st.none() | st.floats(0.3, 0.9))
def test_every_budget_gives_what_compress_gives(net, batches, fits, budget, speed):
    cut, compressed = copy.deepcopy(net), copy.deepcopy(net)
    report = mpo.cut(cut, fits, budget, speed=speed)
    other = mpo.compress(compressed, budget, calibration=batches, loss=loss, method="interpolative", speed=speed)
    assert report.method == "any_size"
    for one, expected in zip(report.layers, other.layers, strict=True):
        assert one.form == expected.form
        assert one.bytes_after == expected.bytes_after
        if one.form != "dense":
            assert one.output_error == pytest.approx(expected.output_error, rel=1e-6)
            assert one.loss_increase == pytest.approx(expected.loss_increase, rel=1e-6, abs=1e-12)
    x = batches[0]
    torch.testing.assert_close(cut(x), compressed(x), rtol=1e-4, atol=1e-5)


def test_sizes_in_bytes_and_some_of_the_layers(net, fits):
    model = copy.deepcopy(net)
    report = mpo.cut(model, fits, "6KB", targets=["0", "2"])
    assert report.bytes_after <= 6000
    assert [record.name for record in report.layers] == ["0", "2"]


def test_another_model_is_refused(net, fits):
    model = copy.deepcopy(net)
    with torch.no_grad():
        model[2].weight[0, 0] += 1e-3
    with pytest.raises(CheckpointError, match="the fit of 2 in .* is of another weight"):
        mpo.cut(model, fits, 0.5)
    assert isinstance(model[0], nn.Linear), "nothing was replaced"


def test_layers_without_a_fit_are_named(net, batches, tmp_path):
    fits = mpo.score(net, tmp_path / "fits", calibration=batches, loss=loss, ignore=["2"])
    with pytest.raises(ArgumentError, match=r"has no fit of 2 \(1 such layers of 3\)"):
        mpo.cut(copy.deepcopy(net), fits, 0.5)
    assert mpo.cut(copy.deepcopy(net), fits, 0.5, ignore=["2"]).parameters_after


def test_folders_without_fits_are_refused(net, fits, tmp_path):
    with pytest.raises(CheckpointError, match="holds no finished fits; make them with mpochain.score"):
        mpo.cut(copy.deepcopy(net), tmp_path, 0.5)
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in fits.iterdir():
        if file.is_file():
            (copied / file.name).write_bytes(file.read_bytes())
    index = read_sealed(copied / "fits.json")
    part = next(copied.glob("*.safetensors"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged; make the fits again"):
        mpo.cut(copy.deepcopy(net), copied, 0.5)
    write_sealed(copied / "fits.json", {**index, "version": 9})
    with pytest.raises(CheckpointError, match="holds fits of version 9"):
        mpo.cut(copy.deepcopy(net), copied, 0.5)


def test_a_budget_out_of_reach_and_missing_data(net, fits, tmp_path):
    with pytest.raises(ArgumentError, match="is out of reach"):
        mpo.cut(copy.deepcopy(net), fits, 0.001)
    with pytest.raises(ArgumentError, match="calibration"):
        mpo.score(net, tmp_path / "none", calibration=None)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["thesis.txt", "config.json", "model.safetensors", "tokenizer.json"])
def test_folders_with_other_files_are_refused(net, batches, tmp_path, name):
    (tmp_path / name).write_text("years of work")
    with pytest.raises(OutputError, match=f"holds something else than fits, such as {name}; name a new or empty"):
        mpo.score(net, tmp_path, calibration=batches, loss=loss)
    assert (tmp_path / name).read_text() == "years of work"


def test_fits_are_replaced(net, batches, fits, tmp_path):
    again = mpo.score(net, tmp_path / "fits", calibration=batches, loss=loss)
    names = sorted(file.name for file in again.iterdir())
    mpo.score(net, again, calibration=batches, loss=loss)
    assert sorted(file.name for file in again.iterdir()) == names


def test_an_interrupted_fit_leaves_no_fits(net, batches, tmp_path):
    def fails(output):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        mpo.score(net, tmp_path / "fits", calibration=batches, loss=fails)
    with pytest.raises(CheckpointError):
        mpo.cut(copy.deepcopy(net), tmp_path / "fits", 0.5)


def test_layers_that_no_data_reach_stay_dense(batches, tmp_path):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(24, 24), nn.Linear(24, 24)

        def forward(self, x):
            return self.used(x)

    model = Half()
    fits = mpo.score(model, tmp_path / "fits", calibration=batches, loss=loss)
    assert read_sealed(fits / "fits.json")["layers"] == ["used"]
    with pytest.raises(ArgumentError, match="has no fit of idle"):
        mpo.cut(model, fits, 0.5)
    report = mpo.cut(model, fits, 0.5, targets=["used"])
    assert report.layers[0].form != "dense"
