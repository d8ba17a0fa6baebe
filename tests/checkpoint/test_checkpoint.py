"""Checkpoints with real files: round trips, damage, hostility, and kills in the middle of a write."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers
from torch import nn
from versions import as_version1, description_of, set_model

import mpochain as mpo
from mpochain import InterpolativeLinear, MPOError, MPOLinear, SumLinear, shapes


def small():
    torch.manual_seed(0)
    model = nn.Sequential(
        MPOLinear(12, 20, terms=[shapes.low_rank(20, 12, 2), mpo.ChainSpec((4, 5), (3, 4), 2)]),
        nn.LayerNorm(20),
        InterpolativeLinear(20, 12, 3, bias=False),
        nn.Linear(12, 4),
        SumLinear([InterpolativeLinear(4, 6, 2, bias=False), MPOLinear(4, 6, max_bond=1)]),
    )
    return model.eval()


def architecture():
    with torch.device("meta"):
        return nn.Sequential(
            nn.Linear(12, 20), nn.LayerNorm(20), nn.Linear(20, 12, bias=False), nn.Linear(12, 4), nn.Linear(4, 6)
        )


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=24, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    batches = [torch.randint(50, (2, 16)) for _ in range(2)]
    mpo.compress(model, 0.7, calibration=batches)
    return model, batches[0]


def same_state(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_is_the_same_to_the_bit(tmp_path, dtype):
    model = small().to(dtype)
    loaded = mpo.load(mpo.save(model, tmp_path / "new" / "folder"), architecture())
    same_state(model, loaded)
    x = torch.randn(3, 12, dtype=dtype)
    assert torch.equal(model(x), loaded(x))
    assert all(p.requires_grad for p in loaded.parameters())


def test_a_hugging_face_model_by_its_folder_alone(tmp_path):
    model, batch = gpt2()
    loaded = mpo.load(mpo.save(model, tmp_path))
    same_state(model, loaded)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight, "the tie is kept"
    assert torch.equal(model(batch).logits, loaded(batch).logits)
    assert loaded.generate(batch[:1], max_new_tokens=2, do_sample=False).shape == (1, 18)


def test_dense_weights_are_never_allocated(tmp_path, monkeypatch):
    """A compressed layer of 2^20 x 2^20 would be four tebibytes as a dense one."""
    side = 1 << 20
    model = nn.Sequential(MPOLinear(side, side, spec=shapes.low_rank(side, side, 1), bias=False))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(side, side, bias=False))
    same_state(model, mpo.load(mpo.save(model, tmp_path), empty))


def test_saving_again_replaces(tmp_path):
    model = small()
    mpo.save(model, tmp_path)
    with torch.no_grad():
        model[3].weight.zero_()
    mpo.save(model, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert not mpo.load(tmp_path, architecture())[3].weight.any()


def test_a_kill_leaves_the_old_model_or_the_new_one(tmp_path):
    """A process that saves two models in turn is killed, again and again, at moments that differ."""
    code = (
        "import sys, torch, mpochain as mpo\n"
        "from torch import nn\n"
        "models = [nn.Sequential(nn.Linear(600, 600)) for _ in range(2)]\n"
        "for k, model in enumerate(models): nn.init.constant_(model[0].weight, k)\n"
        "mpo.save(models[0], sys.argv[1]); print('first', flush=True)\n"
        "while True:\n"
        "    for model in models: mpo.save(model, sys.argv[1])\n"
    )
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"first\n"
        time.sleep(0.05 + 0.013 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        weight = mpo.load(folder, nn.Sequential(nn.Linear(600, 600)))[0].weight
        assert weight.unique().tolist() in ([0.0], [1.0])


def _edit(folder, change):
    file = folder / "config.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=3), "version 3 is newer than this release .*update it: pip install --upgrade"),
        (lambda c: c.update(version="2"), "version '2' is unknown; this release reads 1 and 2"),
        (lambda c: c.update(version=True), "version True is unknown"),
        (lambda c: c.update(format="other"), "format is 'other', expected 'mpochain'"),
        (lambda c: c.pop("layers"), "layers: Field required"),
        (lambda c: c.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda c: c.update(tensors="../../etc/passwd"), "tensors: String should match pattern"),
        (lambda c: c.update(sha256="0" * 64), "is damaged"),
        (lambda c: c["layers"].update(nothing={}), "the model has no layer 'nothing'"),
        (
            lambda c: c["layers"].update({"": c["layers"]["0"]}),
            "are two layers in the checkpoint, but one in the model",
        ),
        (lambda c: c["layers"].update({"1": c["layers"]["2"]}), "a LayerNorm cannot be a compressed layer"),
        (lambda c: c["layers"]["2"].update(kind="magic"), "layers.2: kind 'magic' is no known layer"),
        (lambda c: c["layers"]["2"].update(rank=1 << 40), "layers.2.rank: Input should be less than"),
        (lambda c: c["layers"]["2"].update(rank=13), "rank 13 exceeds the smaller side"),
        (lambda c: c["layers"]["2"].update(rank=4), "2.coefficients.weight has shape"),
        (
            lambda c: c["layers"]["2"].update(out_features=1 << 30),
            "1073741824x20 matrix, but the layer that it replaces",
        ),
        (lambda c: c["layers"]["0"]["terms"][0].update(out_dims=[1 << 20] * 17), "at most 16 items"),
        (lambda c: c["layers"]["0"]["terms"].append(c["layers"]["0"]["terms"][0]), "missing or unexpected tensors"),
        (lambda c: c["layers"]["4"]["parts"].pop(), "layers.4.parts: List should have at least 2"),
        (lambda c: c["layers"]["4"].update(parts=c["layers"]["4"]["parts"] * 9), "parts: List should have at most 4"),
        (
            lambda c: c["layers"]["4"]["parts"].append({"kind": "sum", "parts": []}),
            "layers.4.parts.2: Input tag 'sum'",
        ),
        (lambda c: c["layers"]["4"]["parts"][0].update(bias=True), "layers.4: only one part"),
        (lambda c: c["layers"]["4"]["parts"][0].update(rank=0), "layers.4.parts.0.rank: Input"),
        (lambda c: c["layers"]["4"]["parts"][0].update(out_features=1 << 30), "layers.4 is a 1073741824x4"),
        (lambda c: c["layers"]["4"]["parts"][1]["terms"][0].update(bonds=[99]), "layers.4.*not attainable"),
        (lambda c: c["layers"].pop("2"), "missing or unexpected tensors"),
        (lambda c: c.update(tied={"3.weight": "nothing"}), "missing or unexpected|the model has no tensors"),
    ],
)
def test_configurations_that_are_not_believed(tmp_path, change, message):
    mpo.save(small(), tmp_path)
    _edit(tmp_path, change)
    with pytest.raises(MPOError, match=message):
        mpo.load(tmp_path, architecture())


def test_a_tensor_that_cannot_be_two_is_told(tmp_path):
    mpo.save(gpt2()[0], tmp_path)
    _edit(tmp_path, lambda c: description_of(c)["tied"].update({"lm_head.weight": "transformer.ln_f.weight"}))
    with pytest.raises(MPOError, match=r"'lm_head.weight' has shape \(50, 24\), and .* one tensor cannot be both"):
        mpo.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "os"}, "transformers has no model 'os'"),
        ({"name": "GPT2Config"}, "transformers has no model 'GPT2Config'"),
        ({"name": "__builtins__"}, "(model.name|architectures.0): String should match pattern"),
        ({"n_layer": 10**9}, "over [0-9,]* modules, the file [0-9,]* tensors"),
        ({"n_positions": 10**8}, r"wpe.weight has shape \(32, 24\), expected \(100000000, 24\)"),
        ({"vocab_size": 10**12}, r"wte.weight has shape \(50, 24\), expected \(1000000000000"),
        ({"num_labels": 10**9}, "building the model takes over|is not built after"),
        ({"n_embd": 25}, "config: |"),
        ({"n_embd": 48}, "but the layer that it replaces is|has shape"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_architectures_that_are_not_believed(tmp_path, version, change, message):
    mpo.save(gpt2()[0], tmp_path)
    if version == 1:
        as_version1(tmp_path)
    _edit(tmp_path, lambda c: set_model(c, **change))
    with pytest.raises(MPOError, match=message):
        mpo.load(tmp_path)


def test_a_model_whose_false_number_would_become_a_huge_buffer(tmp_path):
    config = transformers.GPTNeoConfig(
        vocab_size=50,
        max_position_embeddings=32,
        hidden_size=24,
        num_layers=1,
        num_heads=2,
        attention_types=[[["global"], 1]],
    )
    torch.manual_seed(0)
    model = transformers.GPTNeoForCausalLM(config).eval()
    mpo.compress(model, 0.5, method="svd")
    mpo.save(model, tmp_path)
    tokens = torch.arange(20)[None]
    assert torch.equal(mpo.load(tmp_path)(tokens).logits, model(tokens).logits)
    # Its mask of all positions would take a terabyte.
    _edit(tmp_path, lambda c: set_model(c, max_position_embeddings=10**6))
    with pytest.raises(MPOError, match=r"wpe.weight has shape \(32, 24\), expected \(1000000, 24\)"):
        mpo.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_truncated_and_changed_tensors(tmp_path, keep):
    folder = mpo.save(small(), tmp_path)
    (file,) = folder.glob("*.safetensors")
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    with pytest.raises(MPOError, match="is damaged"):
        mpo.load(folder, architecture())
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(MPOError, match="is damaged"):
        mpo.load(folder, architecture())
    file.unlink()
    with pytest.raises(MPOError, match="cannot be read"):
        mpo.load(folder, architecture())


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
def test_a_configuration_that_is_none(tmp_path, text):
    mpo.save(small(), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(MPOError, match="config.json"):
        mpo.load(tmp_path, architecture())


def test_nothing_there(tmp_path):
    with pytest.raises(MPOError, match="cannot be read as the configuration"):
        mpo.load(tmp_path / "none")
    mpo.save(small(), tmp_path)
    with pytest.raises(MPOError, match="pass the architecture to load"):
        mpo.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(MPOError, match="cannot write"):
        mpo.save(small(), tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("name", "message"), [("x" * 256, "File name too long; name a shorter path"), ("a\0", "is no path: embedded null")]
)
def test_folders_that_cannot_be_are_refused(tmp_path, name, message):
    model = torch.nn.Sequential(mpo.MPOLinear(8, 8, max_bond=2))
    for call in (lambda folder: mpo.save(model, folder), mpo.load, mpo.checkpoint.contents):
        with pytest.raises(mpo.errors.ArgumentError, match=message):
            call(tmp_path / name)


class _Pair(nn.Module):
    def __init__(self, shared, layer):
        super().__init__()
        self.a = layer()
        self.b = self.a if shared else layer()


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        (True, "a and b are one layer in the checkpoint, but two in the model given"),
        (False, "a and b are two layers in the checkpoint, but one in the model given"),
    ],
)
def test_layers_that_are_shared_on_one_side_only_are_named(tmp_path, shared, message):
    mpo.save(_Pair(shared, lambda: mpo.MPOLinear(8, 8, max_bond=2)), tmp_path)
    with torch.device("meta"):
        wrong, right = (_Pair(how, lambda: nn.Linear(8, 8)) for how in (not shared, shared))
    with pytest.raises(MPOError, match=message):
        mpo.load(tmp_path, wrong)
    loaded = mpo.load(tmp_path, right)
    assert (loaded.a is loaded.b) is shared


@pytest.mark.parametrize(
    "call",
    [
        mpo.load,
        mpo.checkpoint.contents,
        lambda value: mpo.save(nn.Sequential(mpo.MPOLinear(8, 8, max_bond=2)), value),
        mpo.language.load_language_model,
        lambda value: mpo.language.read_tokens(value, None),
        lambda value: mpo.workflows.read_recipe(value),
    ],
)
def test_what_is_no_path_is_named(call):
    with pytest.raises(mpo.errors.ArgumentError, match="must be a path, as str or pathlib.Path, got int"):
        call(5)
