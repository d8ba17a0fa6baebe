"""Folders of compressed models read by ``from_pretrained`` of transformers, with real files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from integrations.models import IDS, MODELS, llama, logits, mixtral
from layers import NAMES, layer_named
from safetensors.torch import load_file, save_file
from tiny import write_model
from torch import nn
from versions import as_version1, as_version2

import mpochain as mpo
from mpochain.errors import CheckpointError
from mpochain.nn import CompressedLayer, RowEmbedding, RowLinear
from mpochain.surgery.finding import compressed_layers
from mpochain.surgery.tying import tied_head


def read(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def holding(layer, dtype):
    """A Llama that holds a layer: as its embedding with a tied head, as its head, or within its MLP."""
    out, in_ = layer.shape
    table = isinstance(layer, RowEmbedding | RowLinear)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=out if table else 30,
        hidden_size=in_,
        intermediate_size=10 if table else out,
        num_attention_heads=1,
        head_dim=4,
        num_hidden_layers=1,
        initializer_range=0.3,
        tie_word_embeddings=isinstance(layer, RowEmbedding),
    )
    model = transformers.LlamaForCausalLM(config).to(dtype).eval()
    if isinstance(layer, RowEmbedding):
        model.model.embed_tokens, model.lm_head = layer, tied_head(layer)
    elif isinstance(layer, RowLinear):
        model.lm_head = layer
    else:
        model.model.layers[0].mlp.up_proj = layer
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.runs_in("transformers", "`from_pretrained`: equal logits to the bit, float32 and bfloat16", "every form")
def test_every_form_gives_the_logits_of_load(tmp_path, name, dtype):
    model = holding(layer_named(name, torch.float32).to(dtype), dtype)
    folder = mpo.save(model, tmp_path)
    own, theirs = mpo.load(folder), read(folder)
    ids = IDS % model.config.vocab_size
    assert [layer.kind for layer in compressed_layers(theirs).values()] == [
        layer.kind for layer in compressed_layers(model).values()
    ]
    assert torch.equal(own(ids).logits, theirs(ids).logits)
    for key, value in own.state_dict().items():
        assert value.dtype == theirs.state_dict()[key].dtype, key
        assert torch.equal(value, theirs.state_dict()[key]), key


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"device_map": "cpu"},
        {"low_cpu_mem_usage": True},
        {"dtype": torch.float32},
        {"disable_mmap": True},
    ],
    ids=str,
)
@pytest.mark.runs_in("transformers", "Llama, GPT-2 and Mixtral with `device_map`, `dtype`", "low rank, experts")
def test_every_family_gives_the_logits_of_load(tmp_path, name, options):
    model = MODELS[name]()
    mpo.compress(model, 0.6, method="svd")
    folder = mpo.save(model, tmp_path)
    loaded, info = read(folder, output_loading_info=True, **options)
    assert torch.equal(logits(loaded), logits(mpo.load(folder)))
    assert torch.equal(logits(loaded), logits(model))
    assert not any(info.values())
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_another_type_is_that_of_load_and_conversion(tmp_path):
    model = MODELS["gpt2"]()
    mpo.compress(model, "5 bits", method="rtn")
    folder = mpo.save(model, tmp_path)
    assert torch.equal(logits(read(folder, dtype=torch.bfloat16)), logits(mpo.load(folder).bfloat16()))


@pytest.mark.runs_in("transformers", "tied heads", "embeddings")
def test_tied_heads_stay_tied(tmp_path):
    model = llama(tied=True)
    mpo.compress(model, 0.6, method="svd", targets=["re:.*"])
    loaded = read(mpo.save(model, tmp_path))
    for part in (loaded, mpo.load(tmp_path), model):
        cores = dict(part.lm_head.named_parameters())
        assert cores
        assert {id(core) for core in cores.values()} <= {id(core) for core in part.model.embed_tokens.parameters()}
        part.tie_weights()  # asks for names that only compressed layers have
        assert {name: id(core) for name, core in part.lm_head.named_parameters()} == {
            name: id(core) for name, core in cores.items()
        }
    mpo.to_dense(loaded)
    loaded.tie_weights()
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_model_without_its_head_is_read_from_the_same_folder(tmp_path):
    model = mixtral()
    mpo.compress(model, 0.6, method="svd")
    folder = mpo.save(model, tmp_path)
    body = transformers.AutoModel.from_pretrained(folder)
    assert type(body).__name__ == "MixtralModel"
    assert torch.equal(body(IDS).last_hidden_state, model.model(IDS).last_hidden_state)


@pytest.mark.parametrize("name", ["llama", "gpt2-codes", "mixtral"])
def test_a_folder_of_version_1_needs_another_configuration_alone(tmp_path, name):
    """Its tensors stay as they are, with the names that they had then."""
    old = Path(__file__).parents[1] / "checkpoint" / "version1" / name
    folder = as_version2(shutil.copytree(old, tmp_path / name, ignore=shutil.ignore_patterns("expected*")))
    expected = load_file(old / "expected.safetensors")
    with torch.no_grad():
        for model in (read(folder), mpo.load(folder)):
            torch.testing.assert_close(model(expected["x"]).logits, expected["y"], rtol=1e-4, atol=1e-5)


def test_another_head_takes_the_place_of_a_compressed_one(tmp_path):
    model = llama()
    mpo.compress(model, 0.6, method="svd")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(mpo.save(model, tmp_path), num_labels=3)
    assert torch.equal(loaded.model(IDS).last_hidden_state, model.model(IDS).last_hidden_state)
    assert isinstance(loaded.score, nn.Linear)


def test_a_head_is_added_to_a_model_that_has_none(tmp_path):
    body = llama().model
    mpo.compress(body, 0.6, method="svd")
    loaded = transformers.LlamaForSequenceClassification.from_pretrained(mpo.save(body, tmp_path), num_labels=3)
    assert torch.equal(loaded.model(IDS).last_hidden_state, body(IDS).last_hidden_state)


@pytest.mark.runs_in("transformers", "`generate` and `pipeline`", "low rank")
def test_pipelines_and_generate(tmp_path):
    language = mpo.language.load_language_model(write_model(tmp_path / "dense"))
    mpo.compress(language.model, 0.6, method="svd")
    folder = mpo.language.save_language_model(language, tmp_path / "small")
    pipeline = transformers.pipeline("text-generation", model=str(folder))
    options = {"max_new_tokens": 5, "do_sample": False}
    (result,) = pipeline("the old", **options, return_full_text=False)
    ids = language.tokenizer("the old", return_tensors="pt")
    expected = language.model.generate(**ids, **options)
    written = language.tokenizer.decode(expected[0][ids.input_ids.shape[1] :], skip_special_tokens=True)
    assert result["generated_text"].strip() == written
    assert torch.equal(read(folder).generate(**ids, **options), expected)


# Without mpochain: an error, never random weights.

ORDERS = {
    "mpochain first": "import mpochain, transformers",
    "transformers first": "import transformers, transformers.modeling_utils, mpochain",
    "a model first": "from transformers import LlamaForCausalLM; import mpochain",
}


def run(code, *arguments):
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.refused_in("transformers", "a compressed folder where mpochain is not imported")
def test_transformers_alone_stops_with_an_error(tmp_path):
    model = llama()
    mpo.compress(model, 0.6, method="svd")
    mpo.save(model, tmp_path / "saved")
    model.save_pretrained(tmp_path / "own" / "checkpoint-5", max_shard_size="5KB")
    code = (
        "import sys, transformers\n"
        "for folder in sys.argv[1:]:\n"
        "    try:\n"
        "        transformers.AutoModelForCausalLM.from_pretrained(folder)\n"
        "    except OSError as error:\n"
        "        print('refused', 'import-mpochain-to-read-this-folder' in str(error))\n"
        "assert 'mpochain' not in sys.modules\n"
    )
    folders = (tmp_path / "saved", tmp_path / "own" / "checkpoint-5")
    assert run(code, *folders) == "refused True\n" * 2


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_imports_does_not_matter(tmp_path, order):
    model = llama()
    mpo.compress(model, 0.6, method="svd")
    mpo.save(model, tmp_path / "saved")
    torch.save(logits(model), tmp_path / "logits")
    code = (
        f"{ORDERS[order]}\n"
        "import sys, torch, transformers\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "ids = torch.arange(24).reshape(2, 12) % 30\n"
        "with torch.no_grad():\n"
        "    print(torch.equal(model(ids).logits, torch.load(sys.argv[2])))\n"
    )
    assert run(code, tmp_path / "saved", tmp_path / "logits") == "True\n"


def test_importing_the_package_imports_no_transformers():
    run("import sys, mpochain; assert not {'torch', 'transformers'} & set(sys.modules)")


# Folders that are not believed.


def edit(folder, **fields):
    file = folder / "config.json"
    data = json.loads(file.read_text())
    data["quantization_config"] |= fields
    file.write_text(json.dumps(data))


@pytest.fixture
def folder(tmp_path):
    model = llama()
    mpo.compress(model, 0.6, method="svd")
    return mpo.save(model, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 3}, "quantization_config.version 3 is newer .*update it: pip install --upgrade mpochain"),
        ({"version": "2"}, "quantization_config.version '2' is unknown"),
        ({"extra": 1}, "quantization_config.extra: Extra inputs are not permitted"),
        ({"layers": {}}, "missing or unexpected tensors"),
        ({"layers": {"nothing": {}}}, "the model has no layer 'nothing'"),
        ({"layers": 5}, "quantization_config.layers: Input should be a valid dictionary"),
        ({"experts": ["model.layers.0.mlp"]}, "no fused experts named"),
        ({"tied": {"lm_head.weight": "nothing"}}, "is not a tensor of the model"),
        ({"sha256": "../../etc/passwd"}, "quantization_config.sha256: String should match pattern"),
    ],
)
@pytest.mark.refused_in("transformers", "folders of a newer format, or damaged")
def test_descriptions_that_do_not_fit_are_refused(folder, fields, message):
    edit(folder, **fields)
    for call in (read, mpo.load):
        with pytest.raises(CheckpointError, match=message):
            call(folder)


def test_indices_out_of_range_are_refused(tmp_path):
    model = holding(layer_named("permuted", torch.float32), torch.float32)
    folder = mpo.save(model, tmp_path)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = next(key for key, value in tensors.items() if not value.is_floating_point())
    tensors[name] = tensors[name] + 100
    save_file(tensors, file)  # from_pretrained does not compare hashes
    with pytest.raises(CheckpointError, match=name):
        read(folder)


@pytest.mark.refused_in("transformers", "`from_pretrained` of a folder of format version 1, which `mpo.load` reads")
def test_a_folder_of_version_1_names_the_way_to_read_it(folder):
    as_version1(folder)
    with pytest.raises((ValueError, OSError)):
        read(folder)
    assert isinstance(mpo.load(folder), transformers.LlamaForCausalLM)


def test_a_model_of_another_family_is_no_place_for_the_layers(folder):
    config = transformers.GPT2Config(vocab_size=30, n_embd=24, n_layer=1, n_head=2)
    config.quantization_config = json.loads((folder / "config.json").read_text())["quantization_config"]
    with pytest.raises(CheckpointError, match="the model has no layer 'model.layers.0.self_attn.q_proj'"):
        transformers.GPT2LMHeadModel.from_pretrained(folder, config=config)


def test_loaded_models_are_plain_in_the_eyes_of_transformers(folder):
    model = read(folder)
    assert isinstance(model.model.layers[0].mlp.up_proj, CompressedLayer)
    assert not model.is_quantized
    assert not hasattr(model, "hf_quantizer")
    assert not hasattr(model.config, "quantization_config")
    assert not hasattr(model.config, "transformers_weights")
    assert isinstance(mpo.to_dense(model).lm_head, nn.Linear)
