"""Checkpoints of version 1: they load, and mean what they meant.

Commit 9963e53 wrote them, one of each kind; those of GPT-2 and Mixtral were written by commit 2bb0933, the last one
before version 2.
"""

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


@pytest.mark.parametrize("name", ["llama", "gpt2-codes", "mixtral"])
def test_a_transformers_model_by_its_folder_alone(name):
    expected = expected_of(name)
    model = mpo.load(FOLDER / name)
    torch.testing.assert_close(model(expected["x"]).logits, expected["y"], rtol=1e-4, atol=1e-5)


def test_saved_again_it_is_a_folder_of_version_2_with_the_same_tensors(tmp_path):
    folder = mpo.save(mpo.load(FOLDER / "mixtral"), tmp_path)
    (old,), (new,) = (place.glob("model-*.safetensors") for place in (FOLDER / "mixtral", folder))
    assert (new.name, new.read_bytes()) == (old.name, old.read_bytes())
    before, after = (json.loads((place / "config.json").read_text()) for place in (FOLDER / "mixtral", folder))
    description = after["quantization_config"]
    assert description["version"] == 2
    assert {key: description[key] for key in ("layers", "tied", "experts")} == {
        key: before[key] for key in ("layers", "tied", "experts")
    }


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
