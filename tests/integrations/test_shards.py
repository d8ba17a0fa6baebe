"""Folders with several files of tensors: their index is not believed, and damage is found."""

from __future__ import annotations

import hashlib
import json

import pytest
from integrations.models import llama

import mpochain as mpo
from mpochain.checkpoint import contents
from mpochain.errors import CheckpointError


def reseal(folder, change):
    """Change the index, with the right hash."""
    (file,) = folder.glob("model-*.index.json")
    index = json.loads(file.read_text())
    change(index)
    data = json.dumps(index).encode()
    sha256 = hashlib.sha256(data).hexdigest()
    (folder / f"model-{sha256[:16]}.safetensors.index.json").write_bytes(data)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["sha256"] = sha256
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def shards(tmp_path):
    model = llama()
    mpo.compress(model, 0.6, method="svd")
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.pop("metadata"), "metadata: Field required"),
        (lambda i: i["metadata"].pop("sha256"), "metadata.sha256: Field required"),
        (lambda i: i["metadata"].update(sha256={"../private.safetensors": "0" * 64}), "String should match pattern"),
        (lambda i: i["weight_map"].pop("lm_head.core_0_0"), "do not hold the tensors of the index: lm_head.core_0_0"),
        (lambda i: i["metadata"]["sha256"].popitem(), "do not hold the tensors of the index"),
        (
            lambda i: i["metadata"]["sha256"].update(dict.fromkeys(i["metadata"]["sha256"], "0" * 64)),
            "is damaged: its sha256",
        ),
        (
            lambda i: i["metadata"]["sha256"].update({"model-0123456789abcdef.safetensors": "0" * 64}),
            "cannot be read: No such file",
        ),
    ],
)
def test_an_index_is_not_believed(shards, change, message):
    reseal(shards, change)
    with pytest.raises(CheckpointError, match=message):
        mpo.load(shards)


def test_damage_is_found(shards):
    assert contents(shards).intact
    file = max(shards.glob("model-*.safetensors"), key=lambda file: file.stat().st_size)
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert not contents(shards).intact
    with pytest.raises(CheckpointError, match=f"{file.name} is damaged"):
        mpo.load(shards)
    (index,) = shards.glob("model-*.index.json")
    index.write_text("{")
    with pytest.raises(CheckpointError, match=f"{index.name} is damaged"):
        mpo.load(shards)
