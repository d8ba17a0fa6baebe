"""The table of model families against real models of transformers, tiny and with random weights."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import mpochain as mpo
from mpochain import MPOError, MPOLinear, PermutedLinear, architectures
from mpochain.architectures import (
    DENSE_KINDS,
    FAMILIES,
    MLP,
    Family,
    all_configs,
    context_length,
    family_of,
    head_counts,
    is_block,
    mlps,
    text_configs,
)
from mpochain.compression import collect_moments
from mpochain.compression.statistics.recompute import Recomputation
from mpochain.compression.statistics.sampled_loss import SampledLoss
from mpochain.language import compare_speed, generation, perplexity
from mpochain.surgery import absorb_orders
from mpochain.surgery.calls import logits_of, without_cache
from mpochain.train import FinetuneConfig, finetune

LENGTH = 16
_SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
_ROPE = {**_SIZES, "intermediate_size": 24, "max_position_embeddings": LENGTH}
_GROUPED = {**_ROPE, "num_key_value_heads": 2}
_GPT = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}

# The settings of a tiny model of each type, and how many tokens it can read.
MODELS = {
    "llama": (_GROUPED, LENGTH),
    "mistral": (_GROUPED, LENGTH),
    "qwen2": (_GROUPED, LENGTH),
    "qwen3": ({**_GROUPED, "head_dim": 8}, LENGTH),
    "gemma": ({**_GROUPED, "head_dim": 8}, LENGTH),
    "gemma2": ({**_GROUPED, "head_dim": 8}, LENGTH),
    "gemma3_text": ({**_GROUPED, "head_dim": 8}, LENGTH),
    "olmo2": (_GROUPED, LENGTH),
    "smollm3": (_GROUPED, LENGTH),
    "cohere": (_GROUPED, LENGTH),
    "stablelm": (_GROUPED, LENGTH),
    "nemotron": (_GROUPED, LENGTH),
    "arcee": (_GROUPED, LENGTH),
    "phi": (_ROPE, LENGTH),
    "phi3": (_GROUPED, LENGTH),
    "glm": ({**_GROUPED, "head_dim": 4}, LENGTH),
    "starcoder2": (_GROUPED, LENGTH),
    "gpt2": (_GPT, LENGTH),
    "openai-gpt": (_GPT, LENGTH),
    "gptj": ({**_GPT, "rotary_dim": 4}, LENGTH),
    "codegen": ({**_GPT, "rotary_dim": 4}, LENGTH),
    "gpt_bigcode": (_GPT, LENGTH),
    "gpt_neo": (
        {
            "vocab_size": 50,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": LENGTH,
            "attention_types": [[["global", "local"], 1]],
        },
        LENGTH,
    ),
    "gpt_neox": (_ROPE, LENGTH),
    "persimmon": (_ROPE, LENGTH),
    "opt": ({**_SIZES, "ffn_dim": 24, "max_position_embeddings": LENGTH, "word_embed_proj_dim": 16}, LENGTH),
    "xglm": (
        {
            "vocab_size": 50,
            "d_model": 16,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 24,
            "max_position_embeddings": LENGTH,
        },
        LENGTH,
    ),
    "biogpt": (_ROPE, LENGTH),
    "bloom": ({"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 4}, None),
    "falcon": ({**_SIZES, "max_position_embeddings": LENGTH}, LENGTH),
    "mpt": ({"vocab_size": 50, "d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": LENGTH}, LENGTH),
    "mamba": ({"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, None),
    "rwkv": (
        {
            "vocab_size": 50,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "attention_hidden_size": 16,
            "intermediate_size": 24,
            "context_length": LENGTH,
        },
        None,
    ),
}
# Variants that lay the same projections out in other ways.
VARIANTS = {
    "falcon new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon heads": ("falcon", {"multi_query": False}),
    "gpt_bigcode heads": ("gpt_bigcode", {"multi_query": False}),
}
WITH_ATTENTION = [*(name for name in MODELS if name not in ("mamba", "rwkv")), *VARIANTS]


@functools.cache
def built(name):
    kind, variation = VARIANTS.get(name, (name, {}))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that are not installed
        settings = {**MODELS[kind][0], **variation}
        config = transformers.AutoConfig.for_model(kind, bos_token_id=0, eos_token_id=0, pad_token_id=0, **settings)
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def tiny(name):
    """A model that a test may change."""
    return copy.deepcopy(built(name))


def tokens(length=8, count=1):
    return torch.randint(50, (count, length), generator=torch.Generator().manual_seed(1))


def family(model_type):
    return next(row for row in FAMILIES if model_type in row.model_types)


def attention_modules(model):
    """The modules that hold all projections which the table names, and those projections."""
    attention = family_of(model).attention
    names = [attention.fused] if attention.fused else [attention.query, attention.key, attention.value]
    for module in model.modules():
        children = dict(module.named_children())
        if {*names, attention.output} <= set(children):
            yield module, [children[name] for name in names], children[attention.output]


def weight_of(layer):
    """``(out_features, in_features)``, a view."""
    name = type(layer).__module__, type(layer).__name__
    kind = next(kind for kind in DENSE_KINDS if name == (kind.module, kind.name))
    return layer.weight.T if kind.transposed else layer.weight


def sizes(layer):
    return tuple(weight_of(layer).shape)


def test_no_model_type_has_two_rows_and_all_are_known_to_transformers():
    types = [model_type for row in FAMILIES for model_type in row.model_types]
    assert len(types) == len(set(types))
    assert set(types) <= set(transformers.CONFIG_MAPPING)


@pytest.mark.parametrize("name", MODELS)
class TestEveryFamily:
    def test_it_has_a_row(self, name):
        model = built(name)
        assert family_of(model) is family_of(model.config) is family(name)

    def test_its_context_length_is_that_of_the_model(self, name):
        model, expected = built(name), MODELS[name][1]
        assert context_length(model) == expected
        with torch.no_grad():
            assert logits_of(model(tokens(expected or 100))).shape == (1, expected or 100, 50)
            if name in ("gpt2", "openai-gpt", "opt", "gpt_neo", "gpt_bigcode", "biogpt"):  # with learned positions
                with pytest.raises((IndexError, RuntimeError)):
                    model(tokens(expected + 1))

    def test_its_blocks_are_found(self, name):
        model = built(name)
        blocks = [module for module in model.modules() if is_block(module, family_of(model))]
        assert len(blocks) == model.config.num_hidden_layers == 2

    def test_its_mlps_are_found(self, name):
        model = built(name)
        rows = family(name).mlps
        blocks = [module for module in model.modules() if is_block(module, family(name))]
        for block in blocks:
            matches = [
                (mlp, dict(module.named_children()))
                for module in block.modules()
                for mlp in rows
                if {*mlp.writers, mlp.reader} <= set(dict(module.named_children()))
            ]
            assert len(matches) == (1 if rows else 0)
            for mlp, children in matches:
                hidden = sizes(children[mlp.reader])[1]
                assert {sizes(children[writer])[0] for writer in mlp.writers} == {hidden * (2 if mlp.gated else 1)}
        assert set(rows) <= set(mlps(model))

    def test_its_cache_switches_off_and_on(self, name):
        model = tiny(name)
        settings = family_of(model)
        if not hasattr(model.config, settings.cache):
            assert name == "openai-gpt", "the one that has no cache"
            with without_cache(model):
                return
        setattr(model.config, settings.cache, True)
        assert getattr(model(tokens()), settings.past) is not None
        with without_cache(model):
            assert getattr(model(tokens()), settings.past, None) is None
        assert getattr(model.config, settings.cache) is True
        assert getattr(model(tokens()), settings.past) is not None


@pytest.mark.parametrize("name", WITH_ATTENTION)
class TestAttention:
    def test_projections_have_the_sizes_that_follow_from_the_heads(self, name):
        model = tiny(name)
        heads = head_counts(model)
        assert heads.query == 4
        modules = list(attention_modules(model))
        assert len(modules) == 2
        for _, projections, output in modules:
            width = sizes(output)[1] // heads.query
            parts = [heads.query * width, heads.key_value * width, heads.key_value * width]
            assert [sizes(layer)[0] for layer in projections] == (parts if len(projections) == 3 else [sum(parts)])

    def test_values_of_a_head_go_to_its_place_in_the_output(self, name):
        """Without the values of one head nothing reaches its inputs of the layer after attention, and only those."""
        model = tiny(name)
        attention, heads = family_of(model).attention, head_counts(model)
        if attention.fused and attention.layout is None:
            assert name == "codegen"
            return
        _, projections, output = next(attention_modules(model))
        width, group = sizes(output)[1] // heads.query, heads.query // heads.key_value
        head = heads.key_value - 1
        if not attention.fused:
            first = head * width
        elif attention.layout == "parts":
            first = (heads.query + heads.key_value + head) * width
        else:
            first = (head * (group + 2) + group + 1) * width
        layer, rows = projections[-1], slice(first, first + width)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.rand_like(parameter))
            weight_of(layer)[rows] = 0
            if layer.bias is not None:
                layer.bias[rows] = 0
        inputs = []
        output.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0]))
        model(tokens())
        unused = inputs[0].detach().reshape(-1, heads.query, width).abs().amax((0, 2)) == 0
        assert unused.tolist() == [k // group == head for k in range(heads.query)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "openai-gpt", "bloom", "falcon", "mpt", "opt", "mamba"])
def test_recomputed_blocks_have_the_same_gradients(name):
    model = tiny(name)
    block = next(module for module in model.modules() if is_block(module, family_of(model)))
    calls = []
    next(block.children()).register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients():
        model.zero_grad()
        SampledLoss(0)(model(tokens())).backward()
        return {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}

    with without_cache(model):
        expected = gradients()
        assert len(calls) == 1
        with Recomputation().of(model):
            recomputed = gradients()
    assert len(calls) == 3, "once forward and once more for the gradients"
    assert recomputed.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(recomputed[key], value)


@pytest.mark.parametrize("name", ["falcon new", "gpt_bigcode"])  # others are among the architectures of test_suite.py
def test_models_of_other_dense_kinds_are_compressed_and_loaded(name, tmp_path):
    model = tiny(name)
    report = mpo.compress(model, 0.8, calibration=[tokens(8, 4)])
    assert len(report.layers) == 8
    loaded = mpo.load(mpo.save(model, tmp_path / "small"))
    torch.testing.assert_close(logits_of(loaded(tokens())), logits_of(model(tokens())))


@pytest.mark.parametrize("kind", DENSE_KINDS, ids=lambda kind: kind.name)
def test_dense_kinds_are_what_their_rows_say(kind):
    class_ = getattr(importlib.import_module(kind.module), kind.name)
    layer = class_(5, 3) if kind.transposed else class_(3, 5)
    with torch.no_grad():
        layer.bias.normal_()
    weight = layer.weight.T if kind.transposed else layer.weight
    x = torch.randn(4, 3)
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))
    assert class_.__module__ == kind.module


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        text = SimpleNamespace(model_type="llama", max_position_embeddings=32, num_attention_heads=4, use_cache=True)
        self.config = SimpleNamespace(model_type="sees", text_config=text, use_cache=True)


def test_the_language_model_within_a_model_is_found():
    model = Nested()
    assert family_of(model) is family("llama")
    assert context_length(model) == 32
    assert head_counts(model).key_value == 4
    with without_cache(model):
        assert [config.use_cache for config in text_configs(model)] == [False, False]
    assert [config.use_cache for config in text_configs(model)] == [True, True]


def test_an_error_switches_the_cache_on_again():
    model = Nested()
    with pytest.raises(ZeroDivisionError), without_cache(model):
        1 / 0  # noqa: B018
    assert [config.use_cache for config in text_configs(model)] == [True, True]


def caches(model):
    return [config.use_cache for config in all_configs(model) if hasattr(config, "use_cache")]


class TestCachesOfPartsAreSwitchedOff:
    """Copies of a configuration, modules around models, several models in one, settings of generation."""

    def t5(self):
        sizes = {"d_model": 16, "d_ff": 24, "d_kv": 4, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
        return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=50, **sizes)).eval()

    def test_the_decoder_of_t5_has_a_configuration_of_its_own(self):
        model = self.t5()
        assert model.decoder.config is not model.config
        with without_cache(model):
            assert not any(caches(model))
            assert model(tokens(), decoder_input_ids=tokens()).past_key_values is None
        assert model(tokens(), decoder_input_ids=tokens()).past_key_values is not None

    def test_two_models_in_a_module_without_a_configuration(self):
        pair = nn.ModuleDict({"small": tiny("llama"), "other": nn.Sequential(tiny("gpt2"))})
        before = caches(pair)
        assert any(before)
        with without_cache(pair):
            assert not any(caches(pair))
            assert pair["small"](tokens()).past_key_values is None
            assert pair["other"][0](tokens()).past_key_values is None
        assert caches(pair) == before

    def test_models_that_share_a_configuration_have_their_setting_back(self):
        model = tiny("llama")
        twin = copy.deepcopy(model)
        twin.config = model.config
        with without_cache(model, twin):
            assert not model.config.use_cache
        assert model.config.use_cache

    def test_settings_of_generation_are_switched_too(self):
        model = tiny("llama")
        model.generation_config.use_cache = True
        with without_cache(model):
            assert model.generation_config.use_cache is False
        assert model.generation_config.use_cache is True

    @pytest.mark.parametrize("cached", [False, True])
    def test_moments_are_those_without_recomputation(self, cached):
        """Also where a module passes use_cache=True itself, so that a block would add its keys twice."""

        class Around(nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, x):
                return self.model(input_ids=x, decoder_input_ids=x, use_cache=cached).logits

        model = Around(self.t5())
        layers = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
        layers.pop("model.lm_head")
        recomputed = collect_moments(model, layers, [tokens(8, 2)], loss=SampledLoss(0))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Recomputation, "of", lambda *_: contextlib.nullcontext())
            expected = collect_moments(model, layers, [tokens(8, 2)], loss=SampledLoss(0))
        for name, moments in expected.items():
            assert recomputed[name].rows == moments.rows
            torch.testing.assert_close(recomputed[name].activations, moments.activations)
            torch.testing.assert_close(recomputed[name].gradients, moments.gradients)

    def test_a_patched_forward_of_a_block_survives_recomputation(self):
        model = tiny("llama")
        block = model.model.layers[0]
        calls = []

        def patched(*arguments, **named):
            calls.append(1)
            return type(block).forward(block, *arguments, **named)

        block.forward = patched
        with pytest.raises(IndexError), Recomputation().of(model):
            model(tokens(8) + 50)  # outside of the vocabulary
        with Recomputation().of(model):
            model(tokens())
        assert block.forward is patched
        assert calls == [1]
        assert "forward" not in vars(model.model.layers[1])

    def test_a_block_within_a_block_counts_once(self):
        again = Recomputation()
        with again.uncounted():
            with again.uncounted():
                assert again.active
            assert again.active
        assert not again.active


@pytest.mark.parametrize("config", [None, {}, {"max_position_embeddings": 4}, SimpleNamespace(n_positions="many")])
def test_other_models_have_no_limits(config):
    model = nn.Linear(3, 2)
    model.config = config
    assert context_length(model) is None
    assert head_counts(model) is None
    with without_cache(model):
        pass


def test_multimodal_models_of_transformers_are_read_by_their_text():
    text = transformers.LlamaConfig(**_GROUPED)
    config = transformers.LlavaConfig(text_config=text, vision_config={"model_type": "clip_vision_model"})
    assert family_of(config) is family("llama")
    assert context_length(config) == LENGTH
    assert head_counts(config) == architectures.HeadCounts(4, 2)


def test_a_configuration_that_contains_itself_has_an_end():
    config = SimpleNamespace(model_type="llama", max_position_embeddings=8)
    config.text_config = config
    assert context_length(config) == 8


class Output:
    def __init__(self, scores, state):
        self.scores, self.state = scores, state


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand, self.shrink = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return x + self.shrink(torch.relu(self.expand(x)))


class NewModel(nn.Module):
    """A model of a family that the library has never heard of, with a name of its own for everything."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(model_type="new", longest=12, keep_state=True)
        self.embedding, self.block, self.head = nn.Embedding(9, 6), Block(), nn.Linear(6, 9)
        self.kept = []

    def forward(self, input_ids, state=None, keep_state=None, last=0):
        keep_state = self.config.keep_state if keep_state is None else keep_state
        self.kept.append(keep_state)
        x = self.head(self.block(self.embedding(input_ids)))
        return Output(x[:, -last:], "state" if keep_state else None)


NEW = Family(
    ("new",),
    (MLP(("expand",), "shrink", distinctive=False),),
    blocks=("Block",),
    context_length=("longest",),
    cache="keep_state",
    past="state",
    logits="scores",
    last_logits="last",
)


class TestANewRow:
    @pytest.fixture(autouse=True)
    def _row(self, monkeypatch):
        monkeypatch.setattr(architectures, "FAMILIES", (*FAMILIES, NEW))

    def test_the_context_length_limits_windows(self):
        text = tokens(40)[0] % 9
        with pytest.raises(MPOError, match="longer than the model's context of 12"):
            perplexity(NewModel(), text, window=13)
        assert perplexity(NewModel(), text, window=12).windows == 3
        with pytest.raises(MPOError, match="exceed the context of NewModel, 12 tokens"):
            finetune(NewModel(), text.view(2, 20), config=FinetuneConfig(steps=1, batch_size=1))

    def test_training_and_calibration_switch_its_cache_off(self):
        model = NewModel()
        finetune(model, tokens(8, 4) % 9, config=FinetuneConfig(steps=1))
        assert set(model.kept) == {False}
        assert model.config.keep_state
        model.kept.clear()
        mpo.compress(model, 0.9, calibration=[tokens(8, 4) % 9], targets=[r"re:block\..*"])
        assert set(model.kept) == {False}

    def test_its_blocks_are_recomputed(self):
        model, calls = NewModel(), []
        model.block.expand.register_forward_pre_hook(lambda *_: calls.append(1))
        collect_moments(model, {"block.expand": model.block.expand}, [tokens(8, 4) % 9], loss=SampledLoss(0))
        assert len(calls) == 2, "once forward, once for the gradients"

    def test_orders_of_its_mlps_are_absorbed(self):
        model = NewModel()
        rows = torch.randperm(8)
        model.block.expand = PermutedLinear(MPOLinear(6, 8, max_bond=2, bias=False), rows=rows)
        x = tokens(8) % 9
        expected = logits_of(model(x))
        assert absorb_orders(model) == 1
        torch.testing.assert_close(logits_of(model(x)), expected)

    def test_its_speed_is_measured(self):
        speed = compare_speed({"new": NewModel()}, tokens(8) % 9, rounds=1, written=1)
        assert speed["new"].decode > 0


def test_without_its_row_the_new_family_is_an_unknown_model():
    model = NewModel()
    assert context_length(model) is None
    assert not is_block(model.block, family_of(model))
    with pytest.raises(MPOError, match="expected logits"):
        logits_of(model(tokens(8) % 9))


@pytest.mark.parametrize("name", ["mamba", "rwkv", "openai-gpt", "llama"])
def test_models_are_timed_and_generate_with_their_own_cache_or_without(name):
    model = tiny(name)
    speed = compare_speed({name: model}, tokens(8), rounds=1, written=2)
    assert speed[name].decode > 0
    text = tokens(5)
    for _ in range(4):
        text = torch.cat([text, logits_of(model(text))[:, -1:].argmax(-1)], 1)
    assert generation._continue(model, tokens(5), 4, set()) == text[0, 5:].tolist()
