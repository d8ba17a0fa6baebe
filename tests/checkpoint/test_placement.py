"""Devices and types of models: what is refused, where models are put, and where batches go."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from texts import prose
from tiny import write_model
from torch import nn

import mpochain as mpo
from mpochain.checkpoint import Placement, device_named
from mpochain.cli import main
from mpochain.compression.statistics.moments import run_batch
from mpochain.compression.statistics.sampled_loss import sampled_classes
from mpochain.errors import ArgumentError, RecipeError
from mpochain.language import load_language_model, source
from mpochain.workflows.recipe_file import read_recipe


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two accelerators, as far as torch tells."""
    accelerator = SimpleNamespace(
        current_accelerator=lambda check_available=False: torch.device("cuda"), device_count=lambda: 2
    )
    monkeypatch.setattr(torch, "accelerator", accelerator)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch, "accelerator", SimpleNamespace(current_accelerator=lambda check_available=False: None))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "there is no device 'gpu'; name cpu, cuda"),
        ("", "there is no device ''"),
        ("cuda", "device cuda is not available; torch .* finds only the CPU here"),
        ("mps", "device mps is not available"),
        ("meta", "device meta is not available"),
    ],
)
def test_devices_that_are_not_there(no_gpu, name, message):
    with pytest.raises(ArgumentError, match=message):
        device_named(name)


def test_devices_of_a_machine_with_accelerators(two_gpus):
    assert device_named("auto") == torch.device("cuda")
    assert device_named("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ArgumentError, match="cuda:2 does not exist; .* numbered 0 to 1"):
        device_named("cuda:2")
    with pytest.raises(ArgumentError, match="finds cuda and the CPU here"):
        device_named("mps")


def test_the_cpu_is_there_on_every_machine(no_gpu):
    assert device_named("auto") == device_named("cpu") == device_named("cpu:0") == torch.device("cpu")


def test_a_model_is_put_where_it_was_asked_for(tmp_path, monkeypatch):
    write_model(tmp_path / "model")
    asked = []

    def named(name):
        asked.append(name)
        return torch.device("meta")  # the only other device of every machine

    monkeypatch.setattr(source, "device_named", named)
    model = load_language_model(tmp_path / "model", device="cuda:1").model
    assert asked == ["cuda:1"]
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_batch_goes_where_the_model_is():
    model = nn.Linear(3, 2, device="meta")
    for batch in (torch.ones(4, 3), (torch.ones(4, 3),), {"input": torch.ones(4, 3)}):
        assert run_batch(model, batch).device.type == "meta"
    assert run_batch(nn.ReLU(), torch.ones(2)).device.type == "cpu"


def test_labels_are_drawn_on_the_device_of_the_logits():
    logits = torch.randn(6, 9, device="meta", requires_grad=True)
    with pytest.raises(RuntimeError):  # there are no numbers on this device, but none were copied to the CPU
        sampled_classes(logits, None, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "command",
    [
        "eval model --text text.txt",
        "compress model --budget 60% --out small --calibration text.txt --window 32",
        "frontier model --out runs --calibration text.txt --evaluate other.txt --sizes 8 --window 32",
        "convert model --out dense",
    ],
)
def test_commands_refuse_a_device_before_any_work(command, tmp_path, monkeypatch, capsys, no_gpu):
    write_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text(prose(3000, seed=1), encoding="utf-8")
    (tmp_path / "other.txt").write_text(prose(3000, seed=2), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mpochain", *command.split(), "--device", "cuda"])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().err
    assert (ended.value.code, "device cuda is not available" in printed) == (2, True), printed
    assert not any((tmp_path / name).exists() for name in ("small", "dense"))


def test_a_recipe_names_a_device():
    assert read_recipe(None, {"model": "m", "device": "cuda:1"}).device == "cuda:1"
    with pytest.raises(RecipeError, match="device"):
        read_recipe(None, {"model": "m", "device": "GPU 1"})


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
    mpo.compress(model, 0.7, method="svd")
    return mpo.save(model, tmp_path / "small")


def architecture():
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def test_a_model_is_loaded_in_another_type_and_on_a_device(folder):
    plain = mpo.load(folder, architecture())
    half = mpo.load(folder, architecture(), dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    values = half.state_dict()
    assert all(torch.equal(values[name], value.bfloat16()) for name, value in plain.named_parameters())
    same = mpo.load(folder, architecture(), dtype="auto", device_map="auto")
    assert {parameter.dtype for parameter in same.parameters()} == {torch.float32}


def test_parts_of_a_model_have_devices(folder):
    x, plain = torch.randn(3, 16), mpo.load(folder, architecture())
    spread = mpo.load(folder, architecture(), device_map={"0": "cpu", "1": "cpu", "2": "cpu"})
    assert torch.equal(spread(x), plain(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": {"0": "cpu", "7": "cpu"}}, "the model has no part '7'"),
        ({"device_map": {"0": "cpu", "1": "cuda", "2": "cpu"}}, "device cuda is not available"),
        ({"device_map": {"0": "cpu"}}, "device_map"),
        ({"device_map": "gpu"}, "there is no device 'gpu'"),
        ({"device_map": 3}, "there is no device 3, since torch finds only the CPU"),
        ({"device_map": 1.5}, "expected a device, its name or its number, got 1.5"),
        ({"dtype": "int8"}, "dtype must be auto, one of float32"),
        ({"dtype": torch.int8}, "dtype must be auto"),
    ],
)
def test_wrong_placements(folder, no_gpu, options, message):
    with pytest.raises(ArgumentError, match=message):
        mpo.load(folder, architecture(), **options)


def test_the_numbers_of_accelerators(two_gpus):
    assert Placement(1, None)._device == torch.device("cuda:1")
    with pytest.raises(ArgumentError, match="cuda:2 does not exist"):
        Placement(2, None)
