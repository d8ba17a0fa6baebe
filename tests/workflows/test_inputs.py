"""How much of a calibration text is read by default."""

from __future__ import annotations

import pytest
from texts import prose
from tiny import write_model
from torch import nn

from mpochain.workflows import Recipe
from mpochain.workflows.inputs import read_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "dense")
    for name, words in (("long.txt", 12000), ("short.txt", 1500)):
        (folder / name).write_text(prose(words, seed=1), encoding="utf-8")
    return folder


def read(folder, text, window, windows=None):
    calibration = {"text": folder / text, "window": window}
    if windows is not None:
        calibration["windows"] = windows
    return read_inputs(Recipe(model=str(folder / "dense"), budget=0.7, calibration=calibration), "calibration")


@pytest.mark.parametrize("window", [8, 64])
def test_sixteen_tokens_per_input_of_the_widest_layer_and_24_windows(folder, window):
    inputs = read(folder, "long.txt", window)
    layers = [layer for layer in inputs.language.model.modules() if isinstance(layer, nn.Linear)]
    widest = max(layer.in_features for layer in layers)
    assert len(inputs.calibration) == max(24, -(-16 * widest // window))
    assert len(inputs.held_out) == 4


def test_as_far_as_the_text_goes(folder):
    inputs = read(folder, "short.txt", 32)
    assert 4 < len(inputs.calibration) < 24
    assert len(inputs.held_out) == 4, "some are left to be held out"
    assert len(read(folder, "short.txt", 32, 2).calibration) == 2, "what is asked for is taken"
