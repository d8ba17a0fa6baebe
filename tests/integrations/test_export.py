"""Export: symbolic batch and length, compact files, equal outputs, unchanged models, clear errors."""

from __future__ import annotations

import json
import math
import os
import sys

import pytest
import torch
from integrations import models
from layers import layer_named
from tiny import write_model
from torch import nn
from typer.testing import CliRunner

import mpochain as mpo
from mpochain.errors import ArgumentError, ExportError, MissingDependencyError, OutputError
from mpochain.integrations.export import FORMATS, Format
from mpochain.integrations.export.captured import capture

ROWS, FEATURES = 8, 12
# Recording takes a second for each.
NAMES = (
    "chain, three sites",
    "linears, permuted",
    "interpolative",
    "sum",
    "permuted",
    "embedding",
    "rows of trains",
    "4 bits",
    "sum in codes",
)


class Every(nn.Module):
    """Every form of layer beside each other: embeddings read tokens, other layers vectors."""

    def __init__(self, names):
        super().__init__()
        self.layers = nn.ModuleList(layer_named(name, torch.float32) for name in names)

    def forward(self, ids, x):
        return {
            f"pred_{number}": layer(ids if hasattr(layer, "num_embeddings") else x[..., : layer.in_features])
            for number, layer in enumerate(self.layers)
        }


def numbers_of(model):
    """Elements of all tensors of a model, each counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in tensors}.values())


def wide_chain():
    """A chain with so large bonds that one product with the dense matrix takes fewer multiply-adds."""
    torch.manual_seed(0)
    return nn.Sequential(mpo.MPOLinear(64, 64, out_dims=(8, 8), in_dims=(8, 8), max_bond=64), nn.ReLU()).eval()


def net():
    torch.manual_seed(0)
    return nn.Sequential(mpo.InterpolativeLinear(16, 24, 4), nn.Dropout(), mpo.MPOLinear(24, 16, max_bond=3)).eval()


@pytest.fixture
def x():
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(1))


def session_of(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.runs_in("ONNX Runtime", "`mpo.export`, at three other shapes", "every kind")
def test_onnx_of_every_form_of_layer(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = Every(NAMES)
    mpo.set_execution(model, cache=True)
    ids = torch.randint(ROWS, (4, 6), generator=torch.Generator().manual_seed(0))
    values = torch.randn(4, 6, FEATURES, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(ids, values)  # dense matrices are cached now
    exported = mpo.export(model, tmp_path / "every.onnx", inputs=[ids, values])
    assert exported.difference < 1e-5
    file = onnx.load(str(exported.path))
    stored = {tensor.name: math.prod(tensor.dims) for tensor in file.graph.initializer}
    constants = [
        math.prod(attribute.t.dims)
        for nodes in (file.graph.node, *(function.node for function in file.functions))
        for node in nodes
        for attribute in node.attribute
        if attribute.HasField("t")
    ]
    assert max(constants) <= 12
    owned = {name: size for name, size in stored.items() if name.startswith("model.")}
    assert sum(owned.values()) == exported.numbers <= numbers_of(model)
    # Codes stay packed integers; other layers have all of their numbers in the file.
    for number, layer in enumerate(model.layers):
        own = sum(size for name, size in owned.items() if name.startswith(f"model.layers.{number}."))
        assert own == numbers_of(layer), NAMES[number]
    session = session_of(exported.path)
    for shape in ((1, 1), (2, 7), (5, 3)):
        ids, values = torch.randint(ROWS, shape), torch.randn(*shape, FEATURES)
        outputs = session.run(None, {"input_0": ids.numpy(), "input_1": values.numpy()})
        with torch.no_grad():
            expected = model(ids, values)
        assert [output.name for output in session.get_outputs()] == list(expected) == list(exported.outputs)
        for ours, theirs in zip(outputs, expected.values(), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.runs_in("ONNX Runtime", "a language model with a tied head, with padding", "low rank")
def test_onnx_of_a_language_model(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = models.llama(tied=True, layers=1)
    mpo.compress(model, 0.6, method="svd")
    exported = mpo.export(model.train(), tmp_path / "llama.onnx")
    assert model.training
    assert model.config.use_cache
    model.eval()
    assert exported.inputs == ("input_ids", "attention_mask")
    assert exported.outputs == ("logits",)
    buffers = {name for name, _ in model.named_buffers() if "inv_freq" in name}
    assert len(buffers) == 2
    assert sum(parameter.numel() for parameter in model.parameters()) <= exported.numbers <= numbers_of(model)
    session = session_of(exported.path)
    for rows, length in ((1, 1), (3, 4), (2, 40)):
        ids, mask = torch.randint(30, (rows, length)), torch.ones(rows, length, dtype=torch.int64)
        mask[0, : length // 2] = 0
        (logits,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).logits
        kept = mask.bool()
        torch.testing.assert_close(torch.from_numpy(logits)[kept], expected[kept], rtol=1e-4, atol=1e-5)


def largest_from_parameters(program):
    """Elements of the largest tensor in a graph that is computed from parameters alone."""
    constant, largest = set(), 0
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in program.graph_signature.user_inputs:
            constant.add(node)
        elif node.op == "call_function" and node.all_input_nodes and constant.issuperset(node.all_input_nodes):
            constant.add(node)
            value = node.meta["val"]  # None for an assertion
            largest = max(largest, value.numel() if isinstance(value, torch.Tensor) else 0)
    return largest


@pytest.mark.runs_in("torch.export", "chains swept core by core", "chain")
def test_wide_chains_are_swept_core_by_core(tmp_path):
    model, values = wide_chain(), torch.randn(4, 64)
    by_torch = torch.export.export(model, (values,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert largest_from_parameters(by_torch) == 64 * 64, "otherwise nothing is tested"
    assert 0 < largest_from_parameters(capture(model, values).program) <= max(c.numel() for c in model[0].cores[0])
    exported = mpo.export(model, tmp_path / "wide.pt2", "torch", inputs=values)
    assert exported.numbers == numbers_of(model)
    loaded = torch.export.load(exported.path).module()
    for rows in (1, 6):
        values = torch.randn(rows, 64)
        torch.testing.assert_close(loaded(values)[0], model(values), rtol=1e-4, atol=1e-5)


def test_a_model_comes_back_unchanged(tmp_path, x):
    model = net().train()
    model[1].eval()
    mpo.set_execution(model, cache=True)
    with torch.no_grad():
        model(x)
    before = {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    mpo.export(model, tmp_path / "net.pt2", "torch", inputs=x)
    assert [module.training for module in model.modules()] == modes
    assert model[0].cache
    assert model[2].cache
    assert torch.equal(torch.get_rng_state(), generator)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.requires_grad is before[name][1]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a C++ compiler")
@pytest.mark.runs_in("AOTInductor", "a compiled package at other batch sizes", "low rank, chain")
def test_aoti(tmp_path, x):
    try:
        FORMATS["aoti"].require_available()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    model = net()
    exported = mpo.export(model, tmp_path / "net.pt2", "aoti", inputs=x)
    assert exported.numbers == numbers_of(model)
    package = torch._inductor.aoti_load_package(str(exported.path))
    for rows in (1, 5):
        values = torch.randn(rows, 16)
        with torch.no_grad():
            torch.testing.assert_close(package(values)[0], model(values), rtol=1e-4, atol=1e-5)


def test_aoti_without_a_compiler(tmp_path, x, monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(MissingDependencyError, match=r"found no compiler; install g\+\+.*format 'torch'"):
        mpo.export(net(), tmp_path / "net.pt2", "aoti", inputs=x)


def test_missing_packages_are_named(tmp_path, x, monkeypatch):
    monkeypatch.setattr(
        "mpochain.integrations.export.format.find_spec", lambda name: None if name == "onnxscript" else object()
    )
    with pytest.raises(MissingDependencyError, match=r"needs onnxscript; .*pip install 'mpochain\[export\]'"):
        mpo.export(net(), tmp_path / "net.onnx", inputs=x)


@pytest.mark.parametrize(
    ("path", "format_", "inputs", "error", "message"),
    [
        ("net.pt2", "tflite", 2, ArgumentError, "'tflite' is unknown; expected one of onnx, torch, aoti"),
        ("net.pt2", ["onnx"], 2, ArgumentError, "is unknown; expected one of onnx, torch, aoti"),
        ("net.pt", "torch", 2, ArgumentError, r"does not end in \.pt2.*name it net\.pt2"),
        (5, "torch", 2, ArgumentError, "path must be a path"),
        ("net.pt2", "torch", None, ArgumentError, "Sequential is no model of transformers.*give inputs="),
        ("net.pt2", "torch", "x", ArgumentError, "inputs must be a tensor, or a list of tensors, got str"),
        ("net.pt2", "torch", 1, ArgumentError, r"shape \(1, 16\); expected a batch of at least 2"),
        ("net.pt2", "torch", 0, ArgumentError, r"shape \(0, 16\); expected a batch of at least 2"),
        ("file/net.pt2", "torch", 2, OutputError, "file is a file; name a folder"),
        ("folder.pt2", "torch", 2, OutputError, r"folder\.pt2 is a folder; name a file"),
        ("there.pt2", "torch", 2, OutputError, r"there\.pt2 exists and would be overwritten; .*overwrite=True"),
    ],
)
def test_bad_arguments(tmp_path, path, format_, inputs, error, message):
    for name in ("file", "there.pt2"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "folder.pt2").mkdir()
    before = sorted(tmp_path.rglob("*"))
    inputs = torch.randn(inputs, 16) if isinstance(inputs, int) else inputs
    with pytest.raises(error, match=message):
        mpo.export(net(), path if path == 5 else tmp_path / path, format_, inputs=inputs)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.pt2").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path, x):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="you may not write there"):
        mpo.export(net(), tmp_path / "net.pt2", "torch", inputs=x)


def test_other_bad_models(tmp_path, x):
    path = tmp_path / "net.pt2"
    with pytest.raises(ArgumentError, match=r"model must be a torch\.nn\.Module, got str"):
        mpo.export("net", path, "torch", inputs=x)
    with pytest.raises(ArgumentError, match="meta device.*load it first"):
        mpo.export(net().to("meta"), path, "torch", inputs=x)
    with pytest.raises(ExportError, match="torch cannot record ByValue as one graph.*to_dense"):
        mpo.export(ByValue(), path, "torch", inputs=x)
    assert not list(tmp_path.iterdir())


class ByValue(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Altered(Format):
    """The format ``torch`` with a fault."""

    name = "altered"
    suffix = ".pt2"

    def __init__(self, fault):
        self.fault = fault

    def write(self, captured, file):
        FORMATS["torch"].write(captured, file)

    def tensors(self, captured, file):
        dense = {"folded": 24 * 16} if self.fault == "dense" else {}
        return FORMATS["torch"].tensors(captured, file) | dense

    def runner(self, file):
        run = FORMATS["torch"].runner(file)
        return lambda inputs: [output * (1.1 if self.fault == "values" else 1) for output in run(inputs)]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("dense", "'folded', which the model does not have.*as_linears.*to_dense"),
        ("values", "output of the altered file differs from the model by 0.1"),
    ],
)
@pytest.mark.refused_in("ONNX Runtime", "a file that holds a layer as a dense matrix, or computes something else")
def test_a_file_that_is_not_right_is_not_written(tmp_path, x, monkeypatch, fault, message):
    monkeypatch.setitem(FORMATS, "altered", Altered(fault))
    with pytest.raises(ExportError, match=message):
        mpo.export(net(), tmp_path / "net.pt2", "altered", inputs=x)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path):
    from mpochain.cli.app import app

    folder, out = write_model(tmp_path / "dense", layers=1), tmp_path / "model.pt2"
    arguments = ["export", str(folder), "--format", "torch", "--out", str(out), "--no-check", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    written = json.loads(result.stdout)
    assert written["file"] == str(out)
    assert written["inputs"] == ["input_ids", "attention_mask"]
    assert written["bytes"] == out.stat().st_size
    assert written["difference"] is None
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, OutputError)
    unsuited = CliRunner().invoke(
        app, ["export", str(tmp_path / "missing"), "--format", "torch", "--out", "model.onnx"]
    )
    assert isinstance(unsuited.exception, ArgumentError)
    assert "does not end in .pt2" in str(unsuited.exception)
