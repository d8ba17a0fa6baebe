"""A compression that was interrupted goes on from its checkpoint, with the same result to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from perceptrons import same
from torch import nn

from mpochain import compress
from mpochain.compression import building
from mpochain.compression.state_files import read_part, write_part
from mpochain.compression.statistics import passes as statistics_passes
from mpochain.errors import CheckpointError


@pytest.fixture
def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 8))


@pytest.fixture
def data():
    return [torch.randn(40, 16, generator=torch.Generator().manual_seed(1)) for _ in range(2)]


def cut_at(monkeypatch, owner, name, number):
    """Interrupt the call of this number of a function."""
    calls, function = [], getattr(owner, name)

    def cut(*arguments, **named):
        calls.append(name)
        if len(calls) == number:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, cut)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        *[({}, 1), ({}, 3), ({"method": "kronecker"}, 2), ({"method": "search"}, 3)],
        ({"budget": "4.5 bits"}, 2),
    ],
)
def test_layers_are_built_once(monkeypatch, tmp_path, model, data, options, layers):
    options = {"budget": 0.5, **options}
    expected, resumed = copy.deepcopy(model), copy.deepcopy(model)
    report = compress(expected, calibration=data, **options)
    with monkeypatch.context() as patch:
        cut_at(patch, building.Builder, "__call__", layers)
        with pytest.raises(KeyboardInterrupt):
            compress(model, calibration=data, checkpoint=tmp_path, **options)
    built = []
    monkeypatch.setattr(statistics_passes, "gather_moments", lambda *_, **__: pytest.fail("the moments were kept"))
    record = building.record_of
    monkeypatch.setattr(building, "record_of", lambda target, *rest: built.append(target.name) or record(target, *rest))
    again = compress(resumed, calibration=data, checkpoint=tmp_path, **options)
    assert len(built) == 3 - (layers - 1)
    assert same(resumed, expected)
    assert (again.layers, again.frontier) == (report.layers, report.frontier)


def test_every_pass_over_the_data_is_kept(monkeypatch, tmp_path, model, data):
    monkeypatch.setattr("mpochain.compression.statistics.passes._LEAST_BYTES", 1)
    expected, resumed = copy.deepcopy(model), copy.deepcopy(model)
    compress(expected, 0.5, calibration=data)
    with monkeypatch.context() as patch:
        cut_at(patch, statistics_passes, "gather_moments", 2)
        with pytest.raises(KeyboardInterrupt):
            compress(model, 0.5, calibration=data, checkpoint=tmp_path)
    passes, gather = [], statistics_passes.gather_moments
    monkeypatch.setattr(
        statistics_passes, "gather_moments", lambda *a, **k: passes.append(list(a[1])) or gather(*a, **k)
    )
    compress(resumed, 0.5, calibration=data, checkpoint=tmp_path)
    assert passes == [["2"], ["4"]]
    assert same(resumed, expected)


@pytest.mark.parametrize("folder", ["moments", "layers"])
def test_a_damaged_part_is_computed_again(monkeypatch, tmp_path, model, data, folder):
    expected, resumed = copy.deepcopy(model), copy.deepcopy(model)
    compress(expected, 0.5, calibration=data)
    with monkeypatch.context() as patch:
        cut_at(patch, building.Builder, "__call__", 3)
        with pytest.raises(KeyboardInterrupt):
            compress(model, 0.5, calibration=data, checkpoint=tmp_path)
    for file in (tmp_path / folder).glob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-3] ^= 4
        file.write_bytes(content)
    compress(resumed, 0.5, calibration=data, checkpoint=tmp_path)
    assert same(resumed, expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"budget": 0.6}, "budget was 0.5 and is now 0.6"),
        ({"method": "svd_llm"}, "method was"),
        ({"ignore": ["0"]}, "ignore was"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"calibration": [torch.zeros(40, 16)]}, "the hash of the calibration data was"),
        ({"loss": torch.sum}, "loss was null"),
    ],
)
def test_another_run_is_refused_by_name(tmp_path, model, data, change, named):
    arguments = {"budget": 0.5, "calibration": data, "checkpoint": tmp_path}
    compress(copy.deepcopy(model), **arguments)
    before = copy.deepcopy(model)
    with pytest.raises(CheckpointError, match=named):
        compress(model, **(arguments | change))
    assert same(model, before)


def test_other_start_weights_are_refused(tmp_path, model, data):
    compress(copy.deepcopy(model), 0.5, calibration=data, checkpoint=tmp_path)
    with torch.no_grad():
        model[2].bias[0] += 1
    with pytest.raises(CheckpointError, match="the hash of the model's weights was"):
        compress(model, 0.5, calibration=data, checkpoint=tmp_path)


def test_a_damaged_state_is_no_start(tmp_path, model, data):
    compress(copy.deepcopy(model), 0.5, calibration=data, checkpoint=tmp_path)
    file = tmp_path / "run.json"
    file.write_text(file.read_text().replace("0.5", "0.7"))
    with pytest.raises(CheckpointError, match=r"run\.json is damaged; remove"):
        compress(model, 0.5, calibration=data, checkpoint=tmp_path)


def test_parts_are_mapped_each_by_itself(tmp_path):
    tensors = {
        "codes": torch.randint(255, (5, 3), dtype=torch.uint8),
        "scales": torch.randn(3, 1).half(),
        "index": torch.arange(4),
        "rows": torch.randn(2, 3).bfloat16(),
        "none": torch.empty(0, 4),
        "flag": torch.tensor(True),
    }
    file = write_part(tmp_path, "layer", tensors, {"rows": 3})
    before = file.read_bytes()
    read = read_part(file, mapped=True)
    assert read is not None
    mapped, values = read
    assert values == {"rows": 3}
    for name, value in tensors.items():
        assert torch.equal(mapped[name], value)
        assert mapped[name].dtype == value.dtype
    torch.save(mapped, tmp_path / "saved")
    assert (tmp_path / "saved").stat().st_size < 5000
    mapped["rows"].zero_()
    assert file.read_bytes() == before
    file.write_bytes(before[:-1] + b"x")
    assert read_part(file, mapped=True) is None
