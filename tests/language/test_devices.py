"""Devices by name: what is refused, where models are put, and where batches go."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from texts import prose
from tiny import write_model
from torch import nn

from mpochain.cli import main
from mpochain.compression.statistics.moments import run_batch
from mpochain.compression.statistics.sampled_loss import sampled_classes
from mpochain.errors import ArgumentError, RecipeError
from mpochain.language import device_named, load_language_model, source
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
