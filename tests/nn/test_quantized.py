"""Layers in codes: types, values against their codes, tiles, training of scales, heads, and hostile values in files."""

from __future__ import annotations

import copy
import json
import pickle
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import NAMES, inputs_of, layer_named
from torch import nn

import mpochain as mpo
from mpochain import InterpolativeLinear, MPOLinear, QuantizedEmbedding, QuantizedLinear, QuantizedParts
from mpochain.checkpoint import contents
from mpochain.errors import ArgumentError, CheckpointError, DTypeError, NonFiniteError, ShapeError
from mpochain.execution.peak_memory import peak_bytes
from mpochain.nn import CompressedLayer, QuantizedLayer, RowLinear
from mpochain.nn.kinds import layer_of
from mpochain.nn.quantized import int4, latent_codes
from mpochain.nn.quantized import linear as linear_module
from mpochain.nn.quantized.int4 import Int4Weight
from mpochain.nn.quantized.tensors import codable
from mpochain.quantization import BITS, Quantized, Scheme, nearest
from mpochain.surgery import in_float32, tied_head

SCHEMES = st.builds(Scheme, st.sampled_from(BITS), st.integers(1, 70), st.booleans())


def random_codes(scheme, rows=7, columns=45, seed=0):
    random = torch.Generator().manual_seed(seed)
    top, groups = scheme.largest_code + 1, (rows, scheme.groups(columns))
    return Quantized(
        torch.randint(top, (rows, columns), generator=random, dtype=torch.uint8),
        torch.randn(groups, generator=random).to(torch.float16),
        None if scheme.symmetric else torch.randint(top, groups, generator=random, dtype=torch.uint8),
        scheme,
    )


def same_codes(one, other):
    assert one.scheme == other.scheme
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scales, other.scales)
    assert one.zeros is other.zeros or torch.equal(one.zeros, other.zeros)


@given(SCHEMES, st.integers(1, 5), st.integers(1, 90), st.integers(0, 2**16))
@settings(max_examples=20)
def test_the_weight_is_that_of_the_codes(scheme, rows, columns, seed):
    codes = random_codes(scheme, rows, columns, seed)
    layer = QuantizedLinear.from_codes(codes)
    same_codes(layer.codes(), codes)
    assert layer.numbers().bytes == codes.bytes
    layer.require_valid("it")
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(layer.to(dtype).weight, codes.dequantized(dtype))
    table = QuantizedEmbedding.from_codes(codes, dtype=torch.float64)
    ids = torch.arange(rows).flip(0)
    assert torch.equal(table(ids), codes.dequantized(torch.float64)[ids])


LAYERS = {
    "linear": lambda: QuantizedLinear(12, 8, Scheme(4, group=5)),
    "without bias": lambda: QuantizedLinear(12, 8, Scheme(3), bias=False),
    "table": lambda: QuantizedEmbedding(9, 8, Scheme(8)),
    "parts": lambda: QuantizedParts.of(InterpolativeLinear(12, 8, 3), {"rows": Scheme(2)}),
}
CONVERSIONS = {
    "to": (lambda layer: layer.to(torch.bfloat16), torch.bfloat16),
    "half": (lambda layer: layer.half(), torch.float16),
    "double": (lambda layer: layer.double(), torch.float64),
    "type": (lambda layer: layer.type(torch.float64), torch.float64),
    "device": (lambda layer: layer.to("cpu"), torch.float32),
    "model": (lambda layer: nn.Sequential(layer).bfloat16()[0], torch.bfloat16),
    "copy": (lambda layer: copy.deepcopy(layer.bfloat16()), torch.bfloat16),
    "pickle": (lambda layer: pickle.loads(pickle.dumps(layer.bfloat16())), torch.bfloat16),
    "shared": (lambda layer: layer.share_memory(), torch.float32),
}


@pytest.mark.parametrize(
    ("name", "conversion"),
    # Module.type() converts the indices of an interpolative layer too.
    [(name, conversion) for name in LAYERS for conversion in CONVERSIONS if (name, conversion) != ("parts", "type")],
)
def test_conversions_change_the_type_but_no_code_and_no_scale(name, conversion):
    layer = LAYERS[name]()
    own = {key: value.clone() for key, value in layer.state_dict().items() if key in layer.own_types()}
    scale = next(value for key, value in layer.named_parameters() if key.endswith("_scale"))
    scale.grad = torch.ones_like(scale)
    convert, dtype = CONVERSIONS[conversion]
    layer = convert(layer)
    assert layer.dtype == next(layer.parameters()).dtype == dtype
    state = layer.state_dict()
    for key, value in own.items():
        assert state[key].dtype == value.dtype
        assert torch.equal(state[key], value)
    assert all(value.dtype == dtype for key, value in state.items() if value.is_floating_point() and key not in own)
    x = torch.tensor([1]) if layer.looks_up else torch.ones(2, layer.in_features, dtype=dtype)
    assert layer(x).dtype == layer.weight.dtype == dtype


@pytest.mark.parametrize("name", LAYERS)
def test_a_state_is_assigned_to_a_layer_on_the_meta_device(name):
    layer = LAYERS[name]().bfloat16()
    other = type(layer).from_entry(layer.entry())
    assert other.device.type == "meta"
    other.load_state_dict(layer.state_dict(), assign=True)
    assert (other.dtype, other.device.type) == (torch.bfloat16, "cpu")
    assert torch.equal(other.weight, layer.weight)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_tiles_and_their_gradients(monkeypatch, rows):
    layer = QuantizedLinear(12, 8, Scheme(4, group=5), dtype=torch.float64)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    wanted = [x, layer.weight_scale, layer.bias]
    dense = nn.functional.linear(x, layer.weight, layer.bias)
    expected = torch.autograd.grad(dense.square().sum(), wanted)
    monkeypatch.setattr(linear_module, "_TILE", rows * 12)
    monkeypatch.setattr(linear_module, "_KEPT", 0)
    y = layer(x)
    torch.testing.assert_close(y, dense, rtol=1e-12, atol=1e-12)
    for mine, reference in zip(torch.autograd.grad(y.square().sum(), wanted), expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-3)  # that of a scale is float16
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense, rtol=1e-12, atol=1e-12)
        _, tangent = torch.func.jvp(layer, (x.detach(),), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.ones(5, 12, dtype=torch.float64) @ layer.weight.T)


def test_edits_of_codes_are_noticed():
    layer, x = QuantizedLinear(12, 8, Scheme(4)).set_execution(cache=True), torch.randn(5, 12)
    with torch.no_grad():
        layer(x)
        layer.weight_packed.bitwise_not_()
        torch.testing.assert_close(layer(x), layer.compact(x))
        layer.weight_zero_point.zero_()
        torch.testing.assert_close(layer(x), layer.compact(x))
        assert layer.double()(x.double()).dtype == torch.float64
        layer.prototype.data = layer.prototype.data.float()  # as masters of training are held
        layer.bias.data = layer.bias.data.float()
        assert layer(x).dtype == torch.float32
        parts = QuantizedParts.of(InterpolativeLinear(12, 8, 3), Scheme(8)).set_execution(cache=True)
        parts(x)
        parts.bias.add_(1)
        torch.testing.assert_close(parts(x), parts.compact(x))


@pytest.mark.parametrize("scheme", [Scheme(4, 32), Scheme(4, 64, symmetric=True), Scheme(4, 48), Scheme(8, 64)])
@pytest.mark.parametrize("faster", [False, True])
def test_the_kept_weight_in_bfloat16(scheme, faster, monkeypatch):
    """The kernel for 4-bit codes runs on any CPU; where it is not the faster one it is not used."""
    monkeypatch.setattr(int4, "is_faster", lambda device: faster)
    torch.manual_seed(0)
    layer = QuantizedLinear(128, 32, scheme, dtype=torch.bfloat16).set_execution(cache=True)
    kept = layer._to_keep()
    assert isinstance(kept, Int4Weight) is (faster and scheme.bits == 4 and 128 % scheme.group == 0)
    x = torch.randn(3, 2, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        for inputs in (x, x[0], x[0, 0], x[:0], x.transpose(0, 1), x[..., ::1].float()):
            narrow = inputs.dtype == torch.bfloat16
            with nullcontext() if narrow else torch.autocast("cpu", dtype=torch.bfloat16):
                y = layer(inputs)
            exact = nn.functional.linear(inputs.double(), layer.weight.double(), layer.bias.double())
            assert (y.dtype, y.shape) == (torch.bfloat16, exact.shape)
            torch.testing.assert_close(y.double(), exact, rtol=2e-2, atol=2e-2)
        with pytest.raises(RuntimeError, match="same dtype"):
            layer(x.float())
        layer.weight_scale.mul_(2)
        torch.testing.assert_close(layer(x), layer.compact(x), rtol=3e-2, atol=3e-2)


def test_tiles_take_little_memory():
    layer, x = QuantizedLinear(1024, 2048, Scheme(4), bias=False), torch.randn(2, 1024)
    with torch.no_grad():
        peaks = [peak_bytes(lambda: layer(x)), peak_bytes(lambda: layer.weight)]
    assert peaks[0] < 8 << 20 <= peaks[1]  # 8 MiB dense


def test_loading_takes_little_memory(tmp_path):
    """No matrix is dense while a checkpoint is read, and the values are checked piece by piece."""
    model = nn.Sequential(QuantizedEmbedding(4096, 512, Scheme(4)), QuantizedLinear(512, 2048, Scheme(3)))
    folder = mpo.save(model, tmp_path)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    with torch.device("meta"):
        architecture = nn.Sequential(nn.Embedding(4096, 512), nn.Linear(512, 2048))
    assert peak_bytes(lambda: mpo.load(folder, architecture)) < 1.3 * size


@pytest.mark.parametrize("name", ["linear", "parts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_in_training_are_not_kept(name, dtype, monkeypatch):
    monkeypatch.setattr(int4, "is_faster", lambda device: True)
    layer = QuantizedLinear(32, 16, Scheme(4, 32)) if name == "linear" else LAYERS[name]()
    layer, x = layer.to(dtype).set_execution(cache=True), torch.randn(3, layer.in_features, dtype=dtype)
    with torch.no_grad():
        before = layer(x)
        with latent_codes(layer) as names:
            for latent in names.values():
                layer.get_parameter(latent).sub_(2).clamp_(min=0)
                torch.testing.assert_close(layer(x), layer.compact(x), rtol=2e-2, atol=2e-2)
                layer.get_parameter(latent).zero_()
                torch.testing.assert_close(layer(x), layer.compact(x), rtol=2e-2, atol=2e-2)
        assert not torch.allclose(layer(x), before)
        torch.testing.assert_close(layer(x), layer.compact(x), rtol=2e-2, atol=2e-2)


def test_finetuning_trains_the_scales_and_leaves_the_codes(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(QuantizedEmbedding(11, 8, Scheme(4)), QuantizedLinear(8, 11, Scheme(4)))
    codes, scales = model[1].codes(), model[1].weight_scale.detach().clone()
    windows = torch.arange(44).view(4, 11) % 11
    config = mpo.FinetuneConfig(steps=3, batch_size=2, learning_rate=0.1, warmup_steps=1, trainable="compressed")
    result = mpo.finetune(model, windows, config=config)
    assert result.losses[-1] < result.losses[0]
    assert model[1].weight_scale.dtype == model[0].weight_scale.dtype == torch.float16
    assert not torch.equal(model[1].weight_scale, scales)
    assert torch.equal(model[1].codes().codes, codes.codes)


def test_masters_of_a_model_in_float16_compute_in_float32():
    layer = QuantizedLinear(8, 4, Scheme(4), dtype=torch.float16)
    weight = layer.weight
    with in_float32(layer):
        assert (layer.dtype, layer.weight_scale.dtype) == (torch.float32, torch.float32)
        assert torch.equal(layer.weight.half(), weight)
    assert (layer.dtype, layer.weight_scale.dtype) == (torch.float16, torch.float16)
    assert torch.equal(layer.weight, weight)


def test_a_tied_head_shares_codes_and_is_stored_once(tmp_path):
    embedding = QuantizedEmbedding(9, 8, Scheme(4))
    head = tied_head(embedding)
    assert isinstance(head, QuantizedLinear)
    assert head.weight_scale is embedding.weight_scale
    assert head.weight_packed is embedding.weight_packed
    model = nn.Sequential(embedding, nn.Linear(8, 8), head)
    x = torch.tensor([3, 1])
    y = model(x)
    mpo.save(model, tmp_path)
    with torch.device("meta"):
        architecture = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False))
    loaded = mpo.load(tmp_path, architecture)
    assert loaded[2].weight_scale is loaded[0].weight_scale
    assert torch.equal(loaded(x), y)
    summary = contents(tmp_path)
    assert [layer.name for layer in summary.layers] == ["0"]
    assert summary.parameters == 9 * 8 + 2 * 9 + 8 * 8 + 8
    dense = mpo.to_dense(loaded)
    assert dense[2].weight is dense[0].weight
    torch.testing.assert_close(dense(x), y)
    assert isinstance(tied_head(QuantizedParts.of(mpo.MPOEmbedding(9, 8, max_bond=2), Scheme(8))), RowLinear)


def test_a_core_is_quantised_as_a_matrix_of_its_first_and_last_axes():
    layer = MPOLinear(12, 8, out_dims=(2, 4), in_dims=(3, 4), max_bond=5)
    core = layer.core_0_1.detach()  # (5, 4, 4, 1)
    parts = QuantizedParts.of(layer, {"core_0_1": Scheme(8, group=2)})
    same_codes(parts.codes()["core_0_1"], nearest(core.reshape(20, 4), Scheme(8, group=2)))
    assert torch.equal(parts.layer.core_0_0, layer.core_0_0)
    assert parts.to_dense().weight.shape == (8, 12)


@pytest.mark.parametrize("name", [name for name in NAMES if not isinstance(layer_named(name), QuantizedLayer)])
def test_any_layer_has_its_tensors_in_codes(name, tmp_path):
    layer = layer_named(name)
    parts = QuantizedParts.of(layer, {path: Scheme(8, group=4) for path in codable(layer)})
    x, other = inputs_of(layer, (3,)), parts.layer
    assert type(other) is type(layer)
    assert (parts.macs(), parts.looks_up, parts.indices().keys()) == (
        layer.macs(),
        layer.looks_up,
        {f"tensors.{path}" for path in layer.indices()},
    )
    torch.testing.assert_close(other.weight, layer.weight, rtol=0.1, atol=0.1)
    torch.testing.assert_close(parts(x), other(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.float().bfloat16().double()(x), other(x), rtol=0.1, atol=0.1)
    again = layer_of(parts.entry().model_dump(mode="json"), layer.shape, "it")
    again.load_state_dict(parts.state_dict(), assign=True)
    again.require_valid("it")
    torch.testing.assert_close(again(x), parts(x), rtol=0, atol=0)


def test_one_scheme_is_for_the_tensors_that_it_makes_smaller():
    layer = InterpolativeLinear(64, 48, rank=2, dtype=torch.bfloat16)  # 4 bytes of coefficients in a row, or 7
    assert list(QuantizedParts.of(layer, Scheme(4)).codes()) == ["rows.weight"]
    with pytest.raises(ArgumentError, match="has no tensor that 8 bits in groups of 1 make smaller"):
        QuantizedParts.of(layer, Scheme(8, group=1))
    parts = QuantizedParts.of(InterpolativeLinear(64, 48, rank=4), Scheme(4))
    assert list(parts.codes()) == ["rows.weight", "coefficients.weight"]
    assert torch.equal(parts.bias, parts.layer.bias)


def test_what_cannot_be_in_codes_is_refused():
    layer = InterpolativeLinear(12, 8, 3)
    for tensors in ({}, {"bias": Scheme(4)}, {"place": Scheme(4)}, {"row": Scheme(4)}):
        with pytest.raises(
            ArgumentError, match="cannot be held in codes; name some of rows.weight, coefficients.weight"
        ):
            QuantizedParts.of(layer, tensors)
    with pytest.raises(ShapeError, match=r"rows\.weight of shape \(3, 12\) is quantised as \(3, 12\), got .*\(7, 45\)"):
        QuantizedParts.of(layer, {"rows": random_codes(Scheme(4))})
    for wrong in (nn.Linear(4, 4), QuantizedLinear(12, 8, Scheme(4))):
        with pytest.raises(DTypeError, match="expected a compressed layer that is not quantised"):
            QuantizedParts.of(wrong, Scheme(4))
    with pytest.raises(NonFiniteError, match="rows.weight of up"):
        QuantizedParts.of(InterpolativeLinear(12, 8, 3).requires_grad_(False).apply(_broken), Scheme(4), "up")
    with pytest.raises(ArgumentError, match="in_features must be a positive integer, got 0"):
        QuantizedLinear(0, 8, Scheme(4))
    for kind in (QuantizedLinear, QuantizedEmbedding):
        with pytest.raises(ArgumentError, match=r"scheme must be a mpochain\.quantization\.Scheme, got int"):
            kind(8, 8, 4)
    with pytest.raises(ShapeError, match=r"bias must have shape \(7,\)"):
        QuantizedLinear.from_codes(random_codes(Scheme(4)), torch.zeros(8))


def _broken(module):
    if isinstance(module, CompressedLayer):
        module.rows.weight.fill_(float("nan"))


def test_frozen_weights_stay_frozen():
    linear = nn.Linear(12, 8)
    linear.weight.requires_grad_(False)
    layer = QuantizedLinear.from_linear(linear.eval(), Scheme(4))
    assert (layer.weight_scale.requires_grad, layer.bias.requires_grad, layer.training) == (False, True, False)
    assert not layer.to_dense().weight.requires_grad
    parts = QuantizedParts.of(InterpolativeLinear(12, 8, 3).requires_grad_(False), Scheme(4))
    assert not any(parameter.requires_grad for parameter in parts.parameters())


HOSTILE = {
    "scale is NaN": ("weight_scale", lambda value: value.fill_(float("nan")), "0.weight_scale holds NaN or infinite"),
    "scale is infinite": ("weight_scale", lambda value: value.fill_(float("inf")), "0.weight_scale holds NaN or inf"),
    "scale is float32": ("weight_scale", lambda value: value.float(), "0.weight_scale has elements of type F32"),
    "zero point too large": ("weight_zero_point", lambda value: value.fill_(8), "0.weight_zero_point holds 8; a 3-bit"),
    "zero point is int32": ("weight_zero_point", lambda value: value.int(), "0.weight_zero_point has elements of type"),
    "bits after the last code": ("weight_packed", lambda value: value.fill_(-1), "0.weight_packed has bits after"),
    "codes are int64": ("weight_packed", lambda value: value.long(), "0.weight_packed has elements of type I64"),
    "fewer codes": ("weight_packed", lambda value: value[:, 1:].clone(), r"0.weight_packed has shape \(8, 1\)"),
    "fewer scales": ("weight_scale", lambda value: value[:, 1:].clone(), r"0.weight_scale has shape \(8, 2\)"),
    "another type of bias": ("bias", lambda value: value.double(), "a layer holds"),
    "type with elements": ("prototype", lambda value: torch.ones(1), "0.prototype has shape"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_values_in_a_file_are_refused_by_name(tmp_path, case, monkeypatch):
    name, change, message = HOSTILE[case]
    layer = QuantizedLinear(13, 8, Scheme(3, group=5))
    state = {f"0.{key}": value.clone() for key, value in layer.state_dict().items()}
    with torch.no_grad():
        state[f"0.{name}"] = change(state[f"0.{name}"])
    monkeypatch.setattr("mpochain.checkpoint.saving.distinct_tensors", lambda model: (state, {}))
    mpo.save(nn.Sequential(layer), tmp_path)
    with torch.device("meta"):
        architecture = nn.Sequential(nn.Linear(13, 8))
    with pytest.raises(CheckpointError, match=f"(?s)safetensors.*{message}"):
        mpo.load(tmp_path, architecture)


ENTRIES = {
    "bits": {"bits": 5},
    "a name twice": {"tensors": [{"name": "rows", "bits": 4, "group": 64, "symmetric": False}] * 2},
    "another name": {"tensors": [{"name": "bias", "bits": 4, "group": 64, "symmetric": False}]},
    "codes within codes": {"layer": QuantizedLinear(12, 8, Scheme(4)).entry().model_dump(mode="json")},
    "an embedding": {"layer": QuantizedEmbedding(8, 12, Scheme(4)).entry().model_dump(mode="json")},
    "another kind": {"kind": "quantized_parts_embedding"},
    "itself": {"layer": {"kind": "quantized_parts"}},
}


@pytest.mark.parametrize("case", ENTRIES)
def test_hostile_entries_are_refused(tmp_path, case):
    layer = QuantizedParts.of(InterpolativeLinear(12, 8, 3), {"rows": Scheme(4)})
    file = mpo.save(nn.Sequential(layer), tmp_path) / "config.json"
    config = json.loads(file.read_text())
    wrong = ENTRIES[case]
    tensor = config["layers"]["0"]["tensors"][0]
    config["layers"]["0"] |= {"tensors": [{**tensor, **wrong}]} if "bits" in wrong else wrong
    file.write_text(json.dumps(config))
    with torch.device("meta"):
        architecture = nn.Sequential(nn.Linear(12, 8))
    with pytest.raises(CheckpointError, match=r"config\.json: layers\.0"):
        mpo.load(tmp_path, architecture)
