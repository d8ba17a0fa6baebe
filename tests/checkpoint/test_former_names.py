"""Folders and training states that hold tensors of low-rank layers under their former names."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

import mpochain as mpo
from mpochain.checkpoint import contents
from mpochain.quantization import Scheme
from mpochain.system.reading import sha256_of
from mpochain.train import loop
from mpochain.train.stored import checksum, read_record


def formerly(name):
    return name.replace("rows.weight", "rows").replace("coefficients.weight", "coefficients")


def in_former_names(folder):
    """Rewrite a folder as an earlier version wrote it."""
    config = json.loads((folder / "config.json").read_text())
    file = folder / config["tensors"]
    tensors = load_file(file)
    file.unlink()
    save_file({formerly(name): value for name, value in tensors.items()}, folder / "new")
    config["sha256"] = sha256_of(folder / "new")
    config["tensors"] = f"model-{config['sha256'][:16]}.safetensors"
    (folder / "new").rename(folder / config["tensors"])
    config["tied"] = {formerly(name): formerly(target) for name, target in config["tied"].items()}
    (folder / "config.json").write_text(formerly(json.dumps(config)))
    return tensors


def low_rank(form):
    torch.manual_seed(0)
    layer = mpo.InterpolativeLinear(64, 48, 8)
    if "sum" in form:
        layer = mpo.SumLinear([layer, mpo.MPOLinear(64, 48, max_bond=2, bias=False)])
    return mpo.QuantizedParts.of(layer, Scheme(4)) if "codes" in form else layer


@pytest.mark.parametrize("form", ["alone", "in a sum", "in codes", "sum in codes"])
def test_folders_with_former_names_load(tmp_path, form):
    model = nn.Sequential(low_rank(form), nn.Linear(48, 3))
    mpo.save(model, tmp_path)
    before = contents(tmp_path)
    tensors = in_former_names(tmp_path)
    assert {formerly(name) for name in tensors} != set(tensors)
    assert contents(tmp_path) == before
    loaded = mpo.load(tmp_path, nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 3)))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    mpo.save(loaded, tmp_path)
    assert set(load_file(next(tmp_path.glob("*.safetensors")))) == set(tensors), "written again under present names"


def test_tied_factors_with_former_names_stay_tied(tmp_path):
    def model(layer):
        return nn.ModuleList([layer(), layer()])

    tied = model(lambda: low_rank("alone"))
    tied[1].rows.weight = tied[0].rows.weight
    mpo.save(tied, tmp_path)
    in_former_names(tmp_path)
    loaded = mpo.load(tmp_path, model(lambda: nn.Linear(64, 48)))
    assert loaded[1].rows.weight is loaded[0].rows.weight
    assert torch.equal(loaded[1].rows.weight, tied[0].rows.weight)


def test_a_file_with_both_names_is_refused(tmp_path):
    mpo.save(nn.Sequential(low_rank("alone")), tmp_path)
    tensors = in_former_names(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    file = tmp_path / config["tensors"]
    former = load_file(file)
    save_file({**tensors, **former}, file)
    config["sha256"] = sha256_of(file)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(mpo.errors.CheckpointError, match=r"unexpected tensors 0\.coefficients, 0\.rows"):
        mpo.load(tmp_path, nn.Sequential(nn.Linear(64, 48)))


def test_a_training_with_former_names_goes_on(tmp_path, monkeypatch):
    states = []
    write = loop.save_state

    def kept(path, *arguments, **named):
        write(path, *arguments, **named)
        states.append((read_record(path), load_file(path)))

    def trained(state):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Embedding(11, 8), mpo.InterpolativeLinear(8, 11, 3))
        config = mpo.FinetuneConfig(steps=4, batch_size=2, learning_rate=0.1, warmup_steps=1, checkpoint_every=2)
        mpo.finetune(model, torch.arange(44).view(4, 11) % 11, config=config, checkpoint=state)
        return model.state_dict()

    monkeypatch.setattr(loop, "save_state", kept)
    whole = trained(tmp_path / "whole.state")
    record, tensors = states[0]
    assert len(record["result"]["losses"]) == 2
    former = {formerly(name): value for name, value in tensors.items()}
    assert former.keys() != tensors.keys()
    text = json.dumps(record | {"start": "0" * 64})  # the hash is one of names too
    metadata = {"format": "mpochain-training", "version": "2", "record": text, "sha256": checksum(former, text)}
    state = tmp_path / "finetune.state"
    state.write_bytes(save(former, metadata=metadata))
    for _ in range(2):  # the second time from a state under present names
        resumed = trained(state)
        assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


@pytest.mark.parametrize("change", ["an adapter", "a parametrisation", "integers"])
def test_what_was_replaced_inside_of_a_layer_is_not_saved(tmp_path, change):
    model = nn.Sequential(low_rank("in a sum"))
    part = model[0].parts[0]
    if change == "an adapter":
        part.rows = nn.Sequential(part.rows)
    elif change == "a parametrisation":
        nn.utils.parametrizations.weight_norm(part.rows)
    else:
        part.rows.weight = nn.Parameter(part.rows.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(mpo.errors.ArgumentError, match=r"0 holds other tensors than .* merge adapters|ordinary tensor"):
        mpo.save(model, tmp_path)
    assert not list(tmp_path.iterdir())
