"""Folders of compressed models served by vLLM, compared with ``from_pretrained`` of transformers."""

from __future__ import annotations

import copy
import gc
import importlib.util
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

import mpochain as mpo
from mpochain import ChainSpec, EntangledEmbedding, InterpolativeLinear, MPOEmbedding, MPOLinear, SumLinear, shapes
from mpochain.errors import ArgumentError, CheckpointError
from mpochain.nn import LAYERS, LinearChain, QuantizedEmbedding, QuantizedLinear, QuantizedParts
from mpochain.quantization import Scheme
from mpochain.surgery.finding import compressed_layers
from mpochain.surgery.tying import tied_head

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
    pytest.mark.filterwarnings("default"),  # those of the engine are not ours
]

# The kernels of vLLM for CPUs take heads and rows of multiples of 32.
HIDDEN, INNER, VOCABULARY, HEAD = 64, 96, 130, 32
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
PROMPTS = [[1, 2, 3, 4, 5], [7, 129, 11]]


def llama(*, tied=False, bias=False):
    config = transformers.LlamaConfig(
        **SIZES, num_key_value_heads=1, tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias
    )
    return transformers.LlamaForCausalLM(config)


FAMILIES = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=130, n_positions=64, n_embd=64, n_layer=2, n_head=2, initializer_range=0.3)
    ),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=False)
    ),
    "phi3": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**SIZES, num_key_value_heads=1)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=True)
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=HEAD)
    ),
}


def _codes(layer, **schemes):
    return QuantizedParts.of(layer, {name.replace("__", "."): scheme for name, scheme in schemes.items()})


def _sum(out, in_):
    return SumLinear([InterpolativeLinear(in_, out, 4, bias=False), MPOLinear(in_, out, max_bond=2)])


# Every form of linear layer, for any sizes of the models here.
FORMS = {
    "chain": lambda out, in_: MPOLinear(in_, out, max_bond=6),
    "three sites": lambda out, in_: MPOLinear(
        in_, out, out_dims=(2, out // 4, 2), in_dims=(2, in_ // 4, 2), max_bond=4, bias=False
    ),
    "padded": lambda out, in_: MPOLinear(
        in_,
        out,
        spec=ChainSpec((7, -(-out // 7)), (3, -(-in_ // 3)), 5, out_features=out, in_features=in_),
    ),
    "two terms": lambda out, in_: MPOLinear(
        in_, out, terms=[ChainSpec((4, out // 4), (8, in_ // 8), 2), shapes.low_rank(out, in_, 3)]
    ),
    "low rank": lambda out, in_: MPOLinear(in_, out, spec=shapes.low_rank(out, in_, 5)),
    "linears": lambda out, in_: LinearChain([ChainSpec((4, out // 4), (8, in_ // 8), 3)], bias=False),
    "interpolative": lambda out, in_: InterpolativeLinear(in_, out, 8),
    "interpolative, large rank": lambda out, in_: InterpolativeLinear(in_, out, 30, bias=False),
    "sum": _sum,
    "permuted": lambda out, in_: mpo.PermutedLinear(
        MPOLinear(in_, out, max_bond=4, bias=False),
        rows=torch.randperm(out),
        columns=torch.randperm(in_),
        bias=torch.randn(out),
    ),
    "4 bits": lambda out, in_: QuantizedLinear(in_, out, Scheme(4, group=16)),
    "3 bits": lambda out, in_: QuantizedLinear(in_, out, Scheme(3, group=9, symmetric=True), bias=False),
    "sum in codes": lambda out, in_: _codes(_sum(out, in_), parts__0__rows__weight=Scheme(8)),
    "dense": lambda out, in_: nn.Linear(in_, out, bias=False),
}


def with_every_form():
    """A Llama whose layers all have different forms, so that those that vLLM fuses differ as well."""
    model = llama(bias=True)
    forms = iter(FORMS.values())
    for block in model.model.layers:
        for owner, names in (
            (block.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
            (block.mlp, ("gate_proj", "up_proj", "down_proj")),
        ):
            for name in names:
                old = getattr(owner, name)
                new = next(forms)(old.out_features, old.in_features)
                if isinstance(new, nn.Linear):
                    continue
                setattr(owner, name, new)
    return model


def with_table(table):
    """A Llama with a compressed embedding, and a head tied to it."""
    model = llama(tied=True)
    model.model.embed_tokens, model.lm_head = table, tied_head(table)
    return model


def with_low_rank():
    model = llama()
    mpo.compress(model, 0.6, method="svd")
    for block in model.model.layers:  # other ranks than its neighbours, and a dense layer between them
        block.self_attn.q_proj = InterpolativeLinear(HIDDEN, HIDDEN, 7)
        block.self_attn.v_proj = nn.Linear(HIDDEN, HEAD, bias=False)
    return model


def with_compressed_head():
    model = llama()
    mpo.compress(model, 0.6, method="svd", targets=["lm_head"])
    return model


MODELS = {
    "every form": with_every_form,
    "low rank": with_low_rank,
    "dense tied head": lambda: compressed(llama(tied=True)),
    "compressed head": with_compressed_head,
    "chain as table": lambda: with_table(MPOEmbedding(VOCABULARY, HIDDEN, max_bond=6)),
    "table in codes": lambda: with_table(QuantizedEmbedding(VOCABULARY, HIDDEN, Scheme(4, group=16))),
    "chain as table, in codes": lambda: with_table(
        _codes(MPOEmbedding(VOCABULARY, HIDDEN, max_bond=6), table__core_0_0=Scheme(8))
    ),
    "entangled table": lambda: with_table(EntangledEmbedding(VOCABULARY, HIDDEN, order=3, ranks=2)),
    "trains as table": lambda: with_table(mpo.TokenTrainEmbedding(VOCABULARY, HIDDEN, max_bond=2)),
}


def compressed(model):
    mpo.compress(model, 0.6, method="svd")
    return model


def saved(make, folder):
    """The folder of a model with random values everywhere."""
    torch.manual_seed(0)
    model = make().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in compressed_layers(model).values():
            for value in layer.parameters():
                value.normal_(0.0, 0.3 if value.dtype == torch.float32 else 0.02)
    return mpo.save(model, folder)


def served(folder, *, eager=True, **options):
    """Greedy tokens and their log-probabilities by vLLM, for every prompt."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(folder),
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=eager,
        max_model_len=32,
        max_num_seqs=4,
        kv_cache_memory_bytes=32 << 20,
        disable_log_stats=True,
        **options,
    )
    settings = SamplingParams(max_tokens=8, temperature=0, logprobs=1, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    completions = [result.outputs[0] for result in engine.generate(prompts, settings, use_tqdm=False)]
    engine.llm_engine.engine_core.shutdown()
    del engine
    gc.collect()
    return [
        (
            list(one.token_ids),
            [chosen[token].logprob for chosen, token in zip(one.logprobs, one.token_ids, strict=True)],
        )
        for one in completions
    ]


def require_equal(folder, results):
    """Compare with transformers: equal tokens, and log-probabilities that differ by rounding."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt, (tokens, scores) in zip(PROMPTS, results, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        assert tokens == logits.argmax(-1).tolist()
        expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(scores), expected, rtol=0, atol=1e-4)


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")


# Models whose graphs Inductor compiles, which takes a minute. Those of others are captured and run as they are.
BY_INDUCTOR = ("every form", "low rank")


def test_the_models_here_have_layers_of_every_kind():
    torch.manual_seed(0)
    kinds = {layer.kind for make in MODELS.values() for layer in compressed_layers(make()).values()}
    assert kinds == set(LAYERS)


@pytest.mark.runs_in("vLLM", "greedy tokens and log-probabilities, eager and compiled", "every form, tied heads")
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_transformers(tmp_path, monkeypatch, name, eager):
    if name not in BY_INDUCTOR:
        monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")
    folder = saved(MODELS[name], tmp_path)
    require_equal(folder, served(folder, eager=eager))


@pytest.mark.runs_in("vLLM", "Llama, Mistral, Phi-3, Qwen 2 and 3, GPT-2", "low rank")
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(tmp_path, name):
    folder = saved(lambda: compressed(FAMILIES[name]()), tmp_path)
    require_equal(folder, served(folder))


def test_the_engine_runs_in_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    folder = saved(MODELS["low rank"], tmp_path)
    require_equal(folder, served(folder))


# What is refused.


@pytest.fixture
def folder(tmp_path):
    return saved(lambda: compressed(llama()), tmp_path)


@pytest.mark.refused_in("vLLM", "damaged folders, newer formats, experts")
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 3}, "version 3 is newer .*update it: pip install --upgrade mpochain"),
        ({"layers": 5}, "quantization_config.layers: Input should be a valid dictionary"),
        ({"sha256": "0" * 64}, "model-0000000000000000.safetensors cannot be read"),
        ({"experts": ["model.layers.0.mlp"]}, "compressed experts, which vLLM cannot run; .*mpochain convert"),
    ],
)
def test_folders_that_cannot_be_served(folder, fields, message):
    file = folder / "config.json"
    data = json.loads(file.read_text())
    data["quantization_config"] |= fields
    file.write_text(json.dumps(data))
    with pytest.raises(Exception, match=message):
        served(folder)


@pytest.mark.usefixtures("in_this_process")
def test_layers_that_are_not_in_the_model_are_refused(folder):
    file = folder / "config.json"
    data = json.loads(file.read_text())
    layers = data["quantization_config"]["layers"]
    layers["model.layers.0.mlp.nothing"] = layers.pop("model.layers.0.mlp.up_proj")
    file.write_text(json.dumps(data))
    with pytest.raises((CheckpointError, ValueError), match=r"model.layers.0.mlp|gate_up_proj"):
        served(folder)


@pytest.mark.refused_in("vLLM", "tensor parallelism over 1")
def test_tensor_parallelism_is_refused(folder, monkeypatch):
    from vllm.model_executor.layers.linear import ReplicatedLinear

    from mpochain.integrations.vllm import config as room

    fields = json.loads((folder / "config.json").read_text())["quantization_config"]
    parallel = SimpleNamespace(tensor_parallel_size=2)
    monkeypatch.setattr(room, "get_current_vllm_config", lambda: SimpleNamespace(parallel_config=parallel))
    config = room.MpochainConfig.from_config(fields)
    with pytest.raises(ArgumentError, match=r"cannot be split among 2 processes; give --tensor-parallel-size 1"):
        config.get_quant_method(object.__new__(ReplicatedLinear), "model.layers.0.self_attn.o_proj")


def test_the_configuration_travels_to_other_processes_without_layers(folder):
    from mpochain.integrations.vllm.config import MpochainConfig

    fields = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = MpochainConfig.from_config(fields)
    config._layers["embedding"] = nn.Linear(2, 2)
    for copied in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert copied.description == config.description
        assert copied._layers == {}


def test_compiled_graphs_are_cached_for_the_layers_that_they_have(folder):
    from transformers import AutoConfig

    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    # vLLM's key contains this text.
    assert stated["sha256"] in AutoConfig.from_pretrained(folder).to_json_string()
