"""Checkpoints that were written by commit 9963e53, one of each kind: they load, and mean what they meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import mpochain as mpo
from mpochain import FinetuneConfig, MPOLinear

FOLDER = Path(__file__).parent / "version1"
LAYERS = json.loads((FOLDER / "layers.json").read_text())


def dense_of(layer):
    if layer["embedding"]:
        return nn.Embedding(layer["out"], layer["in"])
    return nn.Linear(layer["in"], layer["out"], layer["bias"])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


def expected_of(name):
    return load_file(FOLDER / name / "expected.safetensors")


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_each_kind_has_the_same_function(name):
    expected = expected_of(name)
    model = mpo.load(FOLDER / name, nn.Sequential(dense_of(LAYERS[name])))
    torch.testing.assert_close(model[0].weight, expected["weight"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model(expected["x"]), expected["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["tied-chains", "tied-rows"])
def test_tied_heads_stay_tied(name):
    expected = expected_of(name)
    model = mpo.load(FOLDER / name, Tied())
    torch.testing.assert_close(model(expected["x"]), expected["y"], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        next(model.embedding.parameters()).zero_()
    assert not next(model.head.parameters()).any()


def test_a_transformers_model_by_its_folder_alone():
    expected = expected_of("llama")
    model = mpo.load(FOLDER / "llama")
    torch.testing.assert_close(model(expected["x"]).logits, expected["y"], rtol=1e-4, atol=1e-5)


def test_a_training_state_goes_on_where_it_stopped(tmp_path):
    """The expected parameters are those of the same run without an interruption."""
    state = shutil.copy(FOLDER / "training" / "finetune.state", tmp_path / "finetune.state")
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(11, 8), MPOLinear(8, 11, max_bond=2))
    config = FinetuneConfig(steps=4, batch_size=2, learning_rate=0.1, warmup_steps=1, checkpoint_every=2)
    result = mpo.finetune(model, torch.arange(44).view(4, 11) % 11, config=config, checkpoint=state)
    assert len(result.losses) == 4
    for name, value in expected_of("training").items():
        torch.testing.assert_close(model.state_dict()[name.removeprefix("after.")], value, rtol=1e-4, atol=1e-5)
