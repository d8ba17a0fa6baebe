"""What lies around a layer: hooks, patched forwards, parametrisations, adapters, compiled and parallel models."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import transformers
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import mpochain as mpo
from mpochain import InterpolativeLinear, MPOLinear
from mpochain.errors import ArgumentError, MPOError
from mpochain.surgery import compressed_layers


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))


def _patched(layer):
    before = layer.forward
    layer.forward = lambda x: 3 * before(x)


def _tensor_hook(layer):
    layer.weight.register_hook(lambda gradient: 2 * gradient)


HOOKS = {
    "forward": (lambda layer: layer.register_forward_hook(lambda *_: None), "hooks"),
    "state dict": (lambda layer: layer.register_state_dict_post_hook(lambda *_: None), "hooks on its state dict"),
    "loading": (lambda layer: layer.register_load_state_dict_pre_hook(lambda *_: None), "hooks on its state dict"),
    "gradient": (_tensor_hook, "hooks on its weight"),
    "accumulated": (
        lambda layer: layer.weight.register_post_accumulate_grad_hook(lambda _: None),
        "hooks on its weight",
    ),
}


@pytest.mark.parametrize(("attach", "words"), HOOKS.values(), ids=HOOKS)
def test_hooks_are_refused_and_named(attach, words):
    model = net()
    attach(model[0])
    with pytest.raises(ArgumentError, match=f"^0 has {words}, which its replacement would lose"):
        mpo.compress(model, 0.5, method="svd")
    mpo.compress(model, 0.5, method="svd", ignore=["0"])
    assert list(compressed_layers(model)) == ["2"]


class Doubled(nn.Module):
    def forward(self, value):
        return 2 * value


class Scaled(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("scale", torch.ones(1))


class Stateful(nn.Linear):
    def get_extra_state(self):
        return {"step": 1}

    def set_extra_state(self, state):
        pass


class Called(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


def _replace(kind):
    def alter(model):
        model[0] = kind(16, 16)

    return alter


ALTERED = {
    "patched forward": (lambda model: _patched(model[0]), "its own forward, set on the instance"),
    "parametrised": (
        lambda model: parametrize.register_parametrization(model[0], "weight", Doubled()),
        "parametrisations.*remove_parametrizations",
    ),
    "new spectral norm": (lambda model: parametrizations.spectral_norm(model[0]), "parametrisations"),
    "new weight norm": (lambda model: parametrizations.weight_norm(model[0]), "parametrisations"),
    "parametrised bias": (
        lambda model: parametrize.register_parametrization(model[0], "bias", Doubled()),
        "parametrisations",
    ),
    "weight norm": (lambda model: weight_norm(model[0]), "a weight norm.*remove_weight_norm"),
    "spectral norm": (lambda model: spectral_norm(model[0]), "a spectral norm.*remove_spectral_norm"),
    "pruning": (lambda model: prune.l1_unstructured(model[0], "weight", 0.5), "pruning.*prune.remove"),
    "buffer": (_replace(Scaled), "holds scale besides its weight and bias"),
    "extra state": (_replace(Stateful), "extra state"),
    "own call": (_replace(Called), "has its own forward"),
    "compiled": (lambda model: model[0].compile(backend="eager"), "a compiled forward"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(("alter", "words"), ALTERED.values(), ids=ALTERED)
def test_altered_layers_stay_dense_and_are_refused_by_name(alter, words):
    model = net()
    alter(model)
    x = torch.randn(4, 16)
    model.eval()
    y = model[0](x)
    with pytest.raises(ArgumentError, match=f"targets: '0' is a .*cannot be compressed this way.*{words}"):
        mpo.compress(model, 0.5, method="svd", targets=["0"])
    report = mpo.compress(model, 0.5, method="svd")
    assert list(compressed_layers(model)) == ["2"]
    assert re.search(f"stays dense: 0.*: .*{words}", report.table())
    torch.testing.assert_close(model[0](x), y)


def test_why_nothing_is_left_names_what_was_altered():
    model = nn.Sequential(nn.Linear(4, 4))
    _patched(model[0])
    with pytest.raises(ArgumentError, match="no layer left to compress.*its own forward, set on the instance"):
        mpo.compress(model, 0.5, method="svd")


class Counting(AlignDevicesHook):
    calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return super().pre_forward(module, *args, **kwargs)


def test_hooks_of_accelerate_move_to_the_new_layer_and_back():
    model, x = net(), torch.randn(3, 16)
    hooks = {key: Counting(execution_device="cpu", io_same_device=True) for key in "02"}
    for key, hook in hooks.items():
        add_hook_to_module(model.get_submodule(key), hook)
    mpo.compress(model, 0.5, method="svd")
    assert list(compressed_layers(model)) == ["0", "2"]
    for edit in (lambda: model, lambda: mpo.to_dense(model)):
        edit()
        before = hooks["0"].calls
        model(x)
        assert hooks["0"].calls == hooks["2"].calls == before + 1
    assert type(model[0]) is nn.Linear
    assert model[0]._old_forward.__self__ is model[0]


def test_an_accelerate_hook_around_a_patched_forward_stays():
    model = net()
    _patched(model[0])
    add_hook_to_module(model[0], Counting(execution_device="cpu"))
    mpo.compress(model, 0.5, method="svd")
    assert type(model[0]) is nn.Linear


def test_what_lies_around_a_compressed_layer_is_not_lost_by_to_dense():
    model = net()
    mpo.compress(model, 0.5, method="svd")
    handle = model[2].register_forward_hook(lambda *_: None)
    with pytest.raises(ArgumentError, match="2 has hooks, which its replacement would lose"):
        mpo.to_dense(model)
    assert list(compressed_layers(model)) == ["0", "2"]  # nothing was changed
    handle.remove()
    _patched(model[0])
    with pytest.raises(ArgumentError, match="0 has its own forward"):
        mpo.to_dense(model)
    del model[0].forward
    mpo.to_dense(model)


def test_what_lies_around_a_layer_is_not_lost_by_load(tmp_path):
    model = net()
    mpo.compress(model, 0.5, method="svd")
    mpo.save(model, tmp_path)
    architecture = net()
    architecture[0].register_forward_hook(lambda *_: None)
    with pytest.raises(MPOError, match="0 has hooks"):
        mpo.load(tmp_path, architecture)


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


# A stand-in of the wrappers of other packages, which are known by name.
Wrapped.__module__, Wrapped.__qualname__ = "deepspeed.runtime.engine", "DeepSpeedEngine"


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("edit", ["compress", "to_dense", "absorb_orders"])
def test_wrappers_that_hold_parameters_are_refused(edit, root):
    inner = net()
    if edit != "compress":
        mpo.compress(inner, 0.5, method="svd")
    model = Wrapped(inner) if root else nn.Sequential(Wrapped(inner))
    call = {
        "compress": lambda: mpo.compress(model, 0.5, method="svd"),
        "to_dense": lambda: mpo.to_dense(model),
        "absorb_orders": lambda: mpo.surgery.absorb_orders(model),
    }[edit]
    with pytest.raises(ArgumentError, match=r"module\.0 is inside deepspeed's .*edit the model first"):
        call()


class Adapter(nn.Module):
    """A LoRA layer as PEFT makes it."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.lora_A, self.lora_B = nn.Linear(16, 2, bias=False), nn.Linear(2, 16, bias=False)
        self.merged = False

    def merge(self):
        self.base_layer.weight.data += self.lora_B.weight @ self.lora_A.weight
        self.merged = True

    def forward(self, x):
        return self.base_layer(x) if self.merged else self.base_layer(x) + self.lora_B(self.lora_A(x))


Adapter.__module__, Adapter.__qualname__ = "peft.tuners.tuners_utils", "BaseTunerLayer"


def adapted():
    model = net()
    model[0] = Adapter(model[0])
    return model


@pytest.mark.parametrize("copied", [False, True])
def test_adapters_merge_into_a_compressed_layer(copied):
    model, x = adapted(), torch.randn(5, 16)
    mpo.compress(model, 0.6, method="svd", targets=[r"re:.*base_layer"])
    if copied:
        model = copy.deepcopy(model)
    y = model(x)
    model[0].merge()
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    assert type(model[0].base_layer) is nn.Linear


def test_adapters_themselves_stay_dense():
    model = adapted()
    mpo.compress(model, 0.6, method="svd")
    assert list(compressed_layers(model)) == ["0.base_layer", "2"]
    with pytest.raises(ArgumentError, match=r"0\.lora_A is part of an adapter"):
        mpo.compress(adapted(), 0.6, method="svd", targets=["0.lora_A"])


def test_an_adapter_that_reads_an_embedding_is_refused():
    model = nn.Sequential(Adapter(nn.Linear(16, 16)))
    model[0].base_layer = nn.Embedding(30, 16)
    with pytest.raises(ArgumentError, match="reads the weight of an Embedding.*merge the adapters first"):
        mpo.compress(model, 0.6, method="word2ketxs", targets=["0.base_layer"])


def compiled(module):
    return torch.compile(module, backend="eager")


def test_a_compiled_model_is_compressed_and_compiles_again():
    model, x = net(), torch.randn(40, 16)
    wrapper = compiled(model)
    wrapper(x)  # compiled code does not call hooks that are registered later
    report = mpo.compress(wrapper, 0.6, calibration=[x])
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert type(model[0]) is InterpolativeLinear
    torch.testing.assert_close(wrapper(x), model(x))
    assert mpo.to_dense(wrapper) is wrapper
    assert type(model[0]) is nn.Linear


def test_a_compiled_part_of_a_model_is_compressed():
    model, x = net(), torch.randn(40, 16)
    model[0], model[2] = compiled(model[0]), compiled(nn.Sequential(model[2]))
    model(x)
    report = mpo.compress(model, 0.6, calibration=[x])
    assert [layer.name for layer in report.layers] == ["0", "2.0"]
    assert list(compressed_layers(model)) == ["0._orig_mod", "2._orig_mod.0"]
    plain = nn.Sequential(model[0]._orig_mod, nn.ReLU(), model[2]._orig_mod)
    torch.testing.assert_close(model(x), plain(x))
    with torch.no_grad():
        for parameter in plain[0].parameters():
            parameter.zero_()
    torch.testing.assert_close(model(x), plain(x))


WRAPPED = {
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "twice": lambda model: compiled(nn.DataParallel(model)),
    "its parts": lambda model: nn.Sequential(compiled(model[0]), model[1], nn.DataParallel(compiled(model[2]))),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_model_is_saved_and_loaded_as_the_plain_one(wrap, tmp_path):
    model, x = net(), torch.randn(5, 16)
    mpo.compress(model, 0.6, method="svd")
    wrapper = wrap(model)
    y, modules = model(x), list(wrapper.modules())
    mpo.save(wrapper, tmp_path)
    assert list(wrapper.modules()) == modules
    for architecture in (net(), wrap(net())):
        loaded = mpo.load(tmp_path, architecture)
        assert loaded is architecture
        torch.testing.assert_close(loaded(x), y)


def test_a_compiled_model_of_transformers_is_loaded_without_help(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    mpo.compress(model, 0.8, method="svd")
    model.model.layers[0].mlp = compiled(model.model.layers[0].mlp)
    loaded = mpo.load(mpo.save(compiled(model), tmp_path))
    assert type(loaded) is transformers.LlamaForCausalLM
    ids = torch.arange(8)[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_a_compiled_layer_becomes_dense():
    layer = MPOLinear(16, 12, max_bond=2)
    assert type(mpo.to_dense(compiled(layer))) is nn.Linear
