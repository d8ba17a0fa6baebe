"""The format of compressed-tensors: tensors and configuration as it defines them, read by it where it is installed."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import mpochain as mpo
from mpochain import InterpolativeLinear, QuantizedLinear
from mpochain.checkpoint import export_compressed_tensors
from mpochain.errors import ArgumentError, OutputError
from mpochain.quantization import Scheme


def model_of(schemes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True)).eval()
    mlp = model.model.layers[0].mlp
    for name, scheme in schemes.items():
        setattr(mlp, name, QuantizedLinear.from_linear(getattr(mlp, name), scheme))
    return model


SYMMETRIC = {
    "up_proj": Scheme(4, 32, symmetric=True),
    "gate_proj": Scheme(3, 32, symmetric=True),
    "down_proj": Scheme(8, 64, symmetric=True),
}


def test_tensors_and_configuration_are_those_of_the_format(tmp_path):
    model = model_of({**SYMMETRIC, "up_proj": Scheme(4, 32)})
    folder = export_compressed_tensors(model, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    groups = config["quantization_config"]["config_groups"]
    weights = {group["targets"][0].rpartition(".")[2]: group["weights"] for group in groups.values()}
    assert {name: scheme["num_bits"] for name, scheme in weights.items()} == {
        "up_proj": 4,
        "gate_proj": 3,
        "down_proj": 8,
    }
    assert weights["down_proj"]["strategy"] == "channel"  # one group of 32 columns
    assert (weights["up_proj"]["symmetric"], weights["up_proj"]["group_size"]) == (False, 32)
    stored = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in stored  # tied
    assert not any("prototype" in name for name in stored)
    # By the definition: codes less half their range, packed along the columns; zero points packed along the rows.
    layer, prefix = model.model.layers[0].mlp.up_proj, "model.layers.0.mlp.up_proj."
    shifts = torch.arange(0, 32, 4)
    codes = (stored[prefix + "weight_packed"].long()[:, :, None] >> shifts & 15).view(32, 64) - 8
    zeros = (stored[prefix + "weight_zero_point"].long()[:, None, :] >> shifts[:, None] & 15).view(32, 2) - 8
    scales = stored[prefix + "weight_scale"].float()
    weight = ((codes.view(32, 2, 32) - zeros[..., None]) * scales[..., None]).view(32, 64)
    assert torch.equal(weight, layer.weight)
    assert stored[prefix + "weight_shape"].tolist() == [32, 64]


@pytest.mark.runs_in("compressed-tensors", "folders of `export_compressed_tensors`, without mpochain", "codes")
def test_transformers_reads_the_same_model(tmp_path):
    pytest.importorskip("compressed_tensors")
    model, ids = model_of(SYMMETRIC), torch.tensor([[3, 1, 4, 1, 5]])
    loaded = AutoModelForCausalLM.from_pretrained(export_compressed_tensors(model, tmp_path / "out"))
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.refused_in("compressed-tensors", "layers that are not in codes, groups that do not divide a row, Conv1D")
def test_what_the_format_cannot_hold_is_refused(tmp_path):
    folder = tmp_path / "out"
    for schemes, message in (
        ({}, "no layer in codes"),
        ({"up_proj": Scheme(4, 48)}, "up_proj has 4 bits in groups of 48 of 64 columns"),
    ):
        with pytest.raises(ArgumentError, match=message):
            export_compressed_tensors(model_of(schemes), folder)
    other = model_of(SYMMETRIC)
    other.model.layers[0].mlp.up_proj = InterpolativeLinear(64, 32, 4, bias=False)
    with pytest.raises(ArgumentError, match=r"mlp\.up_proj is an InterpolativeLinear.*mpochain\.save"):
        export_compressed_tensors(other, folder)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=16, n_embd=12, n_layer=1, n_head=2))
    mlp = gpt2.transformer.h[0].mlp
    mlp.c_fc = QuantizedLinear.from_linear(mlp.c_fc, Scheme(4, 12))
    with pytest.raises(ArgumentError, match=r"mlp\.c_fc takes the place of a Conv1D"):
        export_compressed_tensors(gpt2, folder)
    with pytest.raises(ArgumentError, match="no model of transformers"):
        export_compressed_tensors(nn.Sequential(QuantizedLinear(32, 4, Scheme(4))), folder)
    assert not folder.exists()
    mpo.save(model_of(SYMMETRIC), folder)
    with pytest.raises(OutputError, match=r"holds a model.*another folder"):
        export_compressed_tensors(model_of(SYMMETRIC), folder)
