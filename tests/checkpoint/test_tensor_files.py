"""Files of tensors: several with an index, and tensors that share memory."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

import mpochain as mpo
from mpochain.checkpoint.tensor_files import without_shared_memory, write_tensors
from mpochain.errors import ArgumentError, CheckpointError


def test_parts_of_one_memory_are_copied_only_where_they_overlap():
    memory = torch.arange(20.0)
    tensors = {"first": memory[:8], "second": memory[8:], "third": memory[4:10], "fourth": memory[:8]}
    apart = without_shared_memory(tensors)
    for name, value in tensors.items():
        assert torch.equal(apart[name], value)
    places = {name: value.data_ptr() for name, value in apart.items()}
    assert places["first"] == tensors["first"].data_ptr()
    assert places["second"] == tensors["second"].data_ptr()
    assert len(set(places.values())) == 4


@pytest.mark.parametrize("largest", [None, 1, 100, 400])
def test_tensors_are_split_in_their_order(tmp_path, largest):
    tensors = {f"t{number}": torch.full((10,), float(number)) for number in range(7)}
    name, sha256 = write_tensors(tensors, tmp_path, largest)
    assert name.startswith(f"model-{sha256[:16]}.safetensors")
    if largest in (None, 400):
        assert [file.name for file in tmp_path.iterdir()] == [name]
        return
    files = json.loads((tmp_path / name).read_text())["weight_map"]
    assert list(files) == list(tensors)
    assert len(set(files.values())) == (7 if largest == 1 else 4)
    for key, file in files.items():
        with safe_open(tmp_path / file, framework="pt") as stored:
            assert torch.equal(stored.get_tensor(key), tensors[key])


def test_a_model_in_several_files_is_loaded_and_damage_is_told(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(mpo.MPOLinear(24, 24, max_bond=3), nn.ReLU(), nn.Linear(24, 30))
    folder = mpo.save(model, tmp_path / "small", largest_file=1000)
    tensors = sorted(folder.glob("model-*.safetensors"))
    assert len(tensors) > 1
    with torch.device("meta"):
        architecture = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 30))
    loaded = mpo.load(folder, architecture)
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    mpo.save(model, folder)
    assert len(list(folder.glob("model-*"))) == 1, "the former files are gone"
    with pytest.raises(ArgumentError, match="largest_file must be a number of bytes, at least 1, or None, got 0"):
        mpo.save(model, folder, largest_file=0)
    mpo.save(model, folder, largest_file=1000)
    damaged = min(folder.glob("model-*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with torch.device("meta"):
        architecture = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 30))
    with pytest.raises(CheckpointError, match=f"{damaged.name} is damaged"):
        mpo.load(folder, architecture)
