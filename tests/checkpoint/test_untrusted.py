"""Checkpoints from strangers: what save() writes is read, and nothing else is built, fetched, followed or believed."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import resource
import shutil
import sys

import pytest
import torch
import transformers
from layers import NAMES, layer_named
from safetensors.torch import load, save
from torch import nn
from versions import as_version1, description_of, set_model, tensors_of

import mpochain as mpo
from mpochain import InterpolativeLinear, MPOError, MPOLinear
from mpochain.checkpoint import contents, is_checkpoint
from mpochain.checkpoint.building import bounded_building
from mpochain.checkpoint.hugging_face import HuggingFaceModel, described, require_no_code
from mpochain.cli.inspect import inspect
from mpochain.errors import CheckpointError
from mpochain.nn import RowEmbedding
from mpochain.system.reading import file_within, read_bytes

TINY = {"vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}


def small():
    torch.manual_seed(0)
    return nn.Sequential(MPOLinear(12, 8, max_bond=2))


def architecture():
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(12, 8))


def llama(**settings):
    config = transformers.LlamaConfig(**TINY, intermediate_size=16, max_position_embeddings=32, **settings)
    model = transformers.LlamaForCausalLM(config)
    mpo.compress(model, 0.7, method="svd")
    return model.eval()


def edit(folder, change):
    file = folder / "config.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def replace_tensors(folder, change):
    """Change the tensors of a checkpoint, with the right hash."""
    tensors = load(tensors_of(folder).read_bytes())
    change(tensors)
    data = save(tensors)
    sha256 = hashlib.sha256(data).hexdigest()
    (folder / f"model-{sha256[:16]}.safetensors").write_bytes(data)

    def reseal(config):
        description_of(config)["sha256"] = sha256
        if "tensors" in config:
            config["tensors"] = f"model-{sha256[:16]}.safetensors"

    edit(folder, reseal)


def saved(model, folder, version):
    """The folder of a Hugging Face model in one of the versions."""
    mpo.save(model, folder)
    return as_version1(folder) if version == 1 else folder


# Configurations: every value that transformers writes comes back.


def configuration_classes():
    """Every fortieth configuration class of transformers, and those that have infinities by default."""
    names = sorted(name for name in dir(transformers) if name.endswith("Config"))
    special = ["Mamba2Config", "FalconH1Config", "BambaConfig", "Zamba2Config", "GraniteMoeHybridConfig"]
    for name in special + names[::40]:
        kind = getattr(transformers, name)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedConfig):
            yield kind


def test_configurations_come_back_as_transformers_reads_them(tmp_path):
    """The complete round trip of transformers itself, through a file, is the standard."""
    read = 0
    for kind in configuration_classes():
        try:
            config = kind()
        except (ValueError, ImportError, RuntimeError, OSError):  # cannot be built without arguments
            continue
        model = transformers.LlamaForCausalLM.__new__(transformers.LlamaForCausalLM)
        nn.Module.__init__(model)
        model.config = config
        written = json.loads(json.dumps(described(model)))["config"]
        config.to_json_file(tmp_path / "config.json", use_diff=False)
        expected = kind.from_json_file(tmp_path / "config.json")
        assert repr(kind.from_dict(kind._decode_special_floats(written))) == repr(expected), kind
        read += 1
    assert read > 15


def test_infinities_of_a_configuration_come_back():
    config = transformers.Mamba2Config(**TINY | {"num_hidden_layers": 1}, state_size=4, num_heads=3, head_dim=8)
    fields = json.loads(json.dumps(described(transformers.Mamba2Model(config))))
    built = HuggingFaceModel(fields["name"], fields["config"], fields["generation"], "here.{}".format).build()
    assert built.config.time_step_limit[1] == math.inf


@pytest.mark.parametrize(
    "settings", [{"rope_theta": 10**10}, {"max_position_embeddings": 10_485_760}, {"bos_token_id": 1 << 40}]
)
def test_large_numbers_of_a_configuration_are_no_attack(tmp_path, settings):
    config = transformers.LlamaConfig(**TINY, intermediate_size=16, **settings)
    model = transformers.LlamaForCausalLM(config).eval()
    mpo.compress(model, 0.7, method="svd")
    tokens = torch.arange(8)[None]
    assert torch.equal(mpo.load(mpo.save(model, tmp_path))(tokens).logits, model(tokens).logits)


# Sizes: what is built is bounded by the tensors of the file.


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ResNetModel", {"depths": [10**9, 1, 1, 1], "hidden_sizes": [1, 1, 1, 1], "embedding_size": 1}),
        ("FunnelModel", {"block_sizes": [10**6], "d_model": 4, "n_head": 1, "d_head": 4, "d_inner": 4}),
        ("LlamaModel", TINY | {"num_hidden_layers": 10**5}),
        ("LlavaModel", {"text_config": {"model_type": "llama", **TINY, "num_hidden_layers": 10**5}}),
        ("LlamaModel", TINY | {"num_attention_heads": 0}),
        ("LlamaModel", TINY | {"hidden_size": 10**18}),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_no_configuration_builds_more_than_the_file_has_tensors(tmp_path, version, name, config):
    saved(llama(), tmp_path, version)
    edit(tmp_path, lambda c: set_model(c, name=name, config=config))
    with pytest.raises(CheckpointError, match=r"config.json: (model.)?config: "):
        mpo.load(tmp_path)


def test_building_is_stopped_by_time_and_memory(monkeypatch):
    def build(size):
        def grow():
            built = []
            while True:
                built = [*built, "x" * size] if size else []

        bounded_building(grow, 0, "here")

    monkeypatch.setattr("mpochain.checkpoint.building._SECONDS", 0.1)
    with pytest.raises(CheckpointError, match=r"here: the model is not built after 0 s"):
        build(0)
    monkeypatch.setattr("mpochain.checkpoint.building._SECONDS", 30)
    monkeypatch.setattr("mpochain.checkpoint.building._BYTES", 1 << 26)
    with pytest.raises(CheckpointError, match=r"here: building the model takes over 64 MiB"):
        build(100_000)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
# An error that arrives within another library's callback of the garbage collector is dropped, and raised again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_memory_is_limited_within_c_code(monkeypatch):
    """No other thread can stop it, but an allocation fails."""
    monkeypatch.setattr("mpochain.checkpoint.building._SPARE", 1 << 27)
    monkeypatch.setattr("mpochain.checkpoint.building._BYTES", 1 << 27)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(CheckpointError, match="here: building the model takes"):
        bounded_building(lambda: list(itertools.product(range(10**5), range(10**5))), 0, "here")
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_tables_larger_than_the_memory_are_refused(tmp_path, monkeypatch):
    mpo.save(llama(), tmp_path)
    monkeypatch.setattr("mpochain.checkpoint.loading.available_memory", lambda: 3)
    with pytest.raises(CheckpointError, match=r"the model's tables take 0 MiB, but 0 MiB of memory are available"):
        mpo.load(tmp_path)


# Code: no value at any depth makes transformers fetch or import any.


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "org/kernel"},
        {"_attn_implementation": {"": "org/kernel"}},
        {"_attn_implementation_internal": "org/kernel"},
        {"attn_implementation": "flash_attention_2"},
        {"attn_implementation": ["org/kernel"]},
        {"text_config": {"experts_implementation": "org/kernel"}},
        {"list": [{"deep": {"auto_map": {"AutoModel": "org/repo--module.Class"}}}]},
        {"quantization_config": {"quant_method": "awq"}},
        {"use_kernels": True},
        {"kernel_config": {"kernel_mapping": {"RMSNorm": "org/kernel:Norm"}}},
        {"trust_remote_code": True},
        {"backbone": "org/model"},
        {"backbone": "hf-hub:org/model", "backbone_config": {"model_type": "resnet"}},
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf_hub:org/model"}},
        {"architecture": "local-dir:/tmp", "model_type": "timm_wrapper"},
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_values_that_fetch_code_are_refused(tmp_path, version, fields):
    (key, *_) = fields
    with pytest.raises(MPOError, match=rf"here\.{key}"):
        require_no_code(fields, "here")
    saved(llama(), tmp_path, version)
    if version == 2 and key == "quantization_config":
        fields = {"text_config": fields}  # the outer one is read by this library, which knows its own method alone
    edit(tmp_path, lambda c: set_model(c, **fields))
    with pytest.raises(CheckpointError, match=rf"config\.json: (model\.)?config\.(text_config\.)?{key}"):
        mpo.load(tmp_path)


def test_ordinary_values_are_not_refused():
    require_no_code(
        {
            "attn_implementation": "sdpa",
            "_attn_implementation": {"": "eager", "text_config": None},
            "cache_implementation": "static",
            "auto_map": {},
            "backbone": None,
            "vision": {"backbone_config": {"model_type": "resnet"}, "backbone": "resnet50"},
        },
        "here",
    )


def test_a_pointer_to_the_code_of_a_repository_is_not_saved(tmp_path):
    model = llama()
    model.config.auto_map = {"AutoModelForCausalLM": "org/repo--modeling.Own"}
    folder = mpo.save(model, tmp_path)
    assert "auto_map" not in (folder / "config.json").read_text()
    assert isinstance(mpo.load(folder), transformers.LlamaForCausalLM)


# Element types: checked for every tensor.


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.float8_e4m3fn, torch.float64])
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("rows of")])  # heads of embeddings
def test_element_types_are_checked(tmp_path, name, dtype):
    layer = layer_named(name, torch.float32)
    mpo.save(nn.Sequential(layer), tmp_path)
    embedding = isinstance(layer, RowEmbedding)
    out, in_ = layer.shape
    original = json.loads((tmp_path / "config.json").read_text())
    for key in layer.state_dict():
        (tmp_path / "config.json").write_text(json.dumps(original))

        def change(tensors, key=key):
            tensors[f"0.{key}"] = tensors[f"0.{key}"].to(dtype)

        indices = layer.state_dict()[key].dtype == dtype
        own = layer.own_types()
        floats = [name for name, value in layer.state_dict().items() if value.is_floating_point() and name not in own]
        alone = dtype == torch.float64 and floats == [key]
        if indices or alone:
            continue
        replace_tensors(tmp_path, change)
        with torch.device("meta"):
            model = nn.Sequential(nn.Embedding(out, in_) if embedding else nn.Linear(in_, out, layer.bias is not None))
        with pytest.raises(CheckpointError, match=rf"0\.{key}|a layer holds"):
            mpo.load(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_whole_model_of_another_floating_type_is_read(tmp_path, dtype):
    model = small().to(dtype)
    assert mpo.load(mpo.save(model, tmp_path), architecture())[0].dtype == dtype


def test_dense_layers_have_one_type_as_well(tmp_path):
    mpo.save(nn.Sequential(nn.Linear(12, 8)), tmp_path)
    replace_tensors(tmp_path, lambda tensors: tensors.update({"0.bias": tensors["0.bias"].double()}))
    with pytest.raises(CheckpointError, match=r"0.weight of type F32 and 0.bias of type F64"):
        mpo.load(tmp_path, architecture())


# Buffers that the state dict leaves out.


class Scaled(nn.Module):
    def __init__(self, factor=2.0):
        super().__init__()
        self.up = nn.Linear(12, 12)
        self.register_buffer("scale", torch.full((12,), factor), persistent=False)
        self.inner = nn.Module()
        self.inner.register_buffer("mask", torch.ones(3, dtype=torch.bool), persistent=False)

    def forward(self, x):
        return self.up(x) * self.scale


def test_buffers_that_are_not_listed_get_their_values(tmp_path):
    torch.manual_seed(0)
    model = Scaled()
    mpo.compress(model, 0.7, method="svd")
    mpo.save(model, tmp_path)
    with torch.device("meta"):
        empty = Scaled()
    x = torch.randn(2, 12)
    assert torch.equal(mpo.load(tmp_path, empty)(x), model(x))
    # A buffer that the architecture computes itself stays as it is.
    assert torch.equal(mpo.load(tmp_path, Scaled(3.0)).scale, torch.full((12,), 3.0))
    assert contents(tmp_path).parameters == sum(value.numel() for value in model.state_dict().values())


@pytest.mark.parametrize("names", [["nothing"], ["up.weight"], ["scale", "scale", "inner"]])
def test_buffers_that_are_none_are_refused(tmp_path, names):
    mpo.save(Scaled(), tmp_path)
    edit(tmp_path, lambda c: c.update(buffers=names))
    with pytest.raises(CheckpointError, match="buffers|missing or unexpected"):
        mpo.load(tmp_path, Scaled())


def test_a_tensor_that_no_file_holds_is_named(tmp_path):
    class Net(Scaled):
        def __init__(self):
            super().__init__()
            self.table = torch.ones(3)

    model = Net()
    mpo.save(model, tmp_path)
    with torch.device("meta"):
        empty = Net()
    with pytest.raises(MPOError, match=r"table is on the meta device.*build the architecture on the CPU"):
        mpo.load(tmp_path, empty)


# Whatever a state dict holds is written, or refused by name.


class Holding(nn.Module):
    """A layer, and a buffer of any kind."""

    def __init__(self, **buffers):
        super().__init__()
        self.up = nn.Linear(4, 4)
        for name, value in buffers.items():
            self.register_buffer(name, value)


BIG = torch.arange(12.0).view(4, 3)


@pytest.mark.parametrize(
    "buffers",
    [
        {"big": BIG, "part": BIG[:2], "turned": BIG.t()},
        {"expanded": torch.ones(1, 3).expand(5, 3)},
        {"empty": torch.zeros(0, 3), "none": None, "number": torch.tensor(3)},
        {"small": torch.ones(3).to(torch.float8_e4m3fn), "unsigned": torch.ones(3).to(torch.uint16)},
        {"complex": torch.ones(3, dtype=torch.complex64), "true": torch.tensor([True])},
        {"images": torch.ones(1, 2, 3, 3).to(memory_format=torch.channels_last)},
    ],
)
def test_every_plain_tensor_is_written_and_read(tmp_path, buffers):
    model = Holding(**buffers)
    with torch.device("meta"):
        empty = Holding(**{name: None if v is None else torch.empty_like(v) for name, v in buffers.items()})
    loaded = mpo.load(mpo.save(model, tmp_path), empty).state_dict()
    assert list(loaded) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert value.dtype == loaded[name].dtype
        assert value.tolist() == loaded[name].tolist()


class Told(nn.Linear):
    def get_extra_state(self):
        return {"calls": 3}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Holding(wide=torch.ones(2, dtype=torch.complex128)), "wide has elements of type torch.complex128"),
        (Holding(sparse=torch.eye(2).to_sparse()), "sparse has the layout torch.sparse_coo"),
        (Holding(empty=torch.ones(2, device="meta")), "empty is on the meta device"),
        (nn.Sequential(Told(2, 2)), "0._extra_state is a dict instead of a tensor"),
        (MPOLinear(4, 4, max_bond=2).bfloat16(), None),
    ],
)
def test_values_that_no_file_holds_are_named(tmp_path, model, message):
    if message is None:  # one tensor of a layer has another type than the rest
        model.bias.data, message = model.bias.data.float(), "of type BF16 and bias of type F32"
    with pytest.raises(MPOError, match=message):
        mpo.save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_models_that_are_built_with_arguments_or_parts_of_models(tmp_path):
    config = transformers.BertConfig(**TINY, intermediate_size=16)
    whole = transformers.BertModel(config, add_pooling_layer=False)
    mpo.compress(whole, 0.7, method="svd")
    loaded = mpo.load(mpo.save(whole, tmp_path / "whole"))
    assert loaded.pooler is None
    edit(tmp_path / "whole", lambda c: set_model(c, arguments={"add_pooling_layer": True}))
    with pytest.raises(CheckpointError, match=r"missing or unexpected tensors pooler"):
        mpo.load(tmp_path / "whole")
    edit(tmp_path / "whole", lambda c: set_model(c, arguments={"use_mask_token": True}))
    with pytest.raises(CheckpointError, match=r"BertModel takes no argument 'use_mask_token'"):
        mpo.load(tmp_path / "whole")
    mpo.save(whole.encoder, tmp_path / "part")
    with torch.device("meta"):
        empty = transformers.BertModel(config).encoder
    x = torch.ones(1, 3, 12)
    assert torch.equal(mpo.load(tmp_path / "part", empty)(x)[0], whole.encoder.eval()(x)[0])


# Files: regular ones, within the folder.


@pytest.mark.parametrize("suffix", ["", ".bak\n", "\n"])
@pytest.mark.parametrize("place", ["../private/", "{absolute}/", "./", "sub/../"])
def test_names_of_tensors_lead_nowhere(tmp_path, place, suffix):
    folder, private = mpo.save(small(), tmp_path / "downloaded"), tmp_path / "private"
    private.mkdir()
    name = json.loads((folder / "config.json").read_text())["tensors"]
    for target in (private / name, private / f"{name}{suffix}"):
        shutil.copy(folder / name, target)
    path = place.format(absolute=private) + name + suffix
    edit(folder, lambda c: c.update(tensors=path))
    for read in (lambda: mpo.load(folder, architecture()), lambda: contents(folder)):
        with pytest.raises(CheckpointError, match="config.json: tensors"):
            read()


@pytest.mark.parametrize("which", ["config", "tensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link", "chain of links"])
def test_only_regular_files_of_the_folder_are_read(tmp_path, which, kind):
    folder = mpo.save(small(), tmp_path / "downloaded")
    name = "config.json" if which == "config" else json.loads((folder / "config.json").read_text())["tensors"]
    file, outside = folder / name, tmp_path / "outside"
    file.rename(outside)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "link":
        file.symlink_to(outside)
    else:
        (folder / "inside").symlink_to(outside)
        file.symlink_to("inside")
    for read in (lambda: mpo.load(folder, architecture()), lambda: contents(folder)):
        with pytest.raises(CheckpointError, match=r"cannot be read.*(outside of the folder|regular file|directory)"):
            read()
    assert is_checkpoint(folder) is (which == "tensors")


def test_links_within_the_folder_and_to_it_are_followed(tmp_path):
    folder = mpo.save(small(), tmp_path / "downloaded")
    (folder / "config.json").rename(folder / "c")
    (folder / "config.json").symlink_to("c")
    (tmp_path / "link").symlink_to(folder)
    mpo.load(tmp_path / "link", architecture())


def test_the_cache_of_the_hub_keeps_its_files_elsewhere(tmp_path):
    repository = tmp_path / "models--org--name"
    snapshot = mpo.save(small(), repository / "snapshots" / "0123abcd")
    (repository / "blobs").mkdir()
    for k, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(repository / "blobs" / f"{k}")
        file.symlink_to(f"../../blobs/{k}")
    mpo.load(snapshot, architecture())
    (repository / "blobs" / "0").rename(tmp_path / "elsewhere")
    (repository / "blobs" / "0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="outside of the folder"):
        mpo.load(snapshot, architecture())


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 101)
    with pytest.raises(OSError, match="larger than 100 bytes"):
        read_bytes(tmp_path / "a", 100)
    assert read_bytes(tmp_path / "a", 1 << 60) == b"x" * 101
    with pytest.raises(OSError, match="outside of the folder"):
        file_within(tmp_path / "sub", "../a")


# Text: nothing from a file reaches a terminal as it is.


def test_names_of_a_file_are_escaped_in_errors(tmp_path):
    mpo.save(small(), tmp_path)
    name = "\x1b[2J\x9b\u202e0\r"
    edit(tmp_path, lambda c: c["layers"].update({name: c["layers"]["0"]}))
    with pytest.raises(MPOError) as caught:
        mpo.load(tmp_path, architecture())
    assert str(caught.value).isprintable()
    replace_tensors(tmp_path, lambda tensors: tensors.update({name: torch.ones(1)}))
    edit(tmp_path, lambda c: c["layers"].pop(name))
    with pytest.raises(MPOError, match="unexpected tensors") as caught:
        mpo.load(tmp_path, architecture())
    assert str(caught.value).isprintable()


def test_names_of_a_file_are_escaped_in_tables_and_json(tmp_path, capsys):
    mpo.save(small(), tmp_path)
    name = "\x1b[2J\x9b\u202e[red]\n<b>"

    def rename(tensors):
        for key in list(tensors):
            tensors[f"{name}{key.removeprefix('0')}"] = tensors.pop(key)

    replace_tensors(tmp_path, rename)
    edit(tmp_path, lambda c: c["layers"].update({name: c["layers"].pop("0")}))
    for as_json in (False, True):
        inspect(tmp_path, as_json)
        printed = capsys.readouterr().out
        assert "[red]" in printed
        assert all(line.isprintable() for line in printed.split("\n"))
        assert not [line for line in printed.split("\n") if line.startswith("<b>")]


def test_a_layer_that_is_refused_is_refused_in_time(tmp_path):
    mpo.save(nn.Sequential(InterpolativeLinear(12, 8, 3)), tmp_path)
    edit(tmp_path, lambda c: c["layers"].update({str(k): c["layers"]["0"] for k in range(1, 2000)}))
    with pytest.raises(CheckpointError, match="the model has no layer '1'"):
        mpo.load(tmp_path, architecture())
