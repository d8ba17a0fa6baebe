"""Fused experts of mixtures: compressed as layers, by the tokens that reach each expert, and fused again."""

from __future__ import annotations

import copy
import json
import pickle
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

import mpochain as mpo
from mpochain.compression import collect_moments, open_state, require_possible
from mpochain.errors import ArgumentError, CheckpointError
from mpochain.nn import CompressedLayer, SeparateExperts
from mpochain.surgery import fuse_experts, separate_experts
from mpochain.surgery.experts import separated_experts
from mpochain.surgery.fingerprint import fingerprint

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
QWEN = {"num_experts": 4, "moe_intermediate_size": 16}
DEEPSEEK = {
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
}
# Class by family, with what its configuration adds; each has four experts.
FAMILIES = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {**QWEN, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": {**QWEN, "head_dim": 8},
    "GptOss": {"num_local_experts": 4, "head_dim": 8},
    "DeepseekV2": {**LATENT, **DEEPSEEK, "n_shared_experts": 1},
    "DeepseekV3": {**LATENT, **DEEPSEEK, "n_shared_experts": 1},
    "Llama4": {"num_local_experts": 4, "intermediate_size_mlp": 24, "interleave_moe_layer_step": 1, "head_dim": 8},
}
METHODS = ("svd", "svd_llm", "interpolative")


def build(family, dtype=torch.float32, **fields):
    kind = getattr(transformers, f"{family}ForCausalLM")
    torch.manual_seed(0)
    model = kind(kind.config_class(**{**SIZES, **FAMILIES[family], **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 3 or not parameter.any():  # biases and routers start at zero
                parameter.normal_(0, 0.3)
    return model.to(dtype)


@pytest.fixture(scope="module")
def models():
    return {family: build(family) for family in FAMILIES}


@pytest.fixture
def mixtral(models):
    return copy.deepcopy(models["Mixtral"])


def batch(seed=0, rows=4, length=24):
    ids = torch.randint(3, 32, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits(model, seed=0):
    inputs = batch(seed)
    return model(**inputs).logits[inputs["attention_mask"].bool()]


def experts_of(model):
    return [name for name, module in model.named_modules() if isinstance(module, SeparateExperts)]


@pytest.mark.parametrize("family", FAMILIES)
class TestEachFamily:
    def test_separate_experts_compute_the_same(self, models, family):
        model = copy.deepcopy(models[family])
        before, held = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
        separate = separate_experts(model)
        assert [len(experts) for experts in separate.values()] == [4]
        torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits(pickle.loads(pickle.dumps(model))), before, rtol=1e-5, atol=1e-5)
        assert fuse_experts(model) == 1
        after = model.state_dict()
        assert list(after) == list(held)
        assert all(torch.equal(after[name], value) for name, value in held.items())
        assert torch.equal(logits(model), before)

    def test_to_rounding_in_bfloat16(self, family):
        model = build(family, torch.bfloat16)
        wide = logits(copy.deepcopy(model).float())
        fused = logits(model).float()
        separate_experts(model)
        separate = logits(model)
        assert separate.dtype == torch.bfloat16
        # No farther from the exact outputs than the fused form, up to chance.
        assert (separate.float() - wide).norm() < 1.1 * (fused - wide).norm()

    def test_through_every_form(self, models, family, tmp_path):
        """Compressed by each method, saved, loaded, made dense, and back through transformers."""
        method = METHODS[list(FAMILIES).index(family) % len(METHODS)]
        model = copy.deepcopy(models[family])
        report = mpo.compress(model, 0.6, method=method, calibration=[batch(1)])
        layers = [layer for layer in report.layers if ".experts." in layer.name]
        matrices = [value for value in models[family].parameters() if value.ndim == 3]
        assert sum(layer.parameters_before for layer in layers) == sum(value.numel() for value in matrices)
        # All but embeddings, norms and routers.
        assert report.coverage > 0.7
        assert sum(layer.form != "dense" for layer in layers) > 0
        assert report.parameters_after <= 0.6 * report.parameters_before
        expected = logits(model)
        mpo.save(model, tmp_path / "small")
        loaded = mpo.load(tmp_path / "small")
        assert experts_of(loaded) == experts_of(model) != []
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
        dense = mpo.to_dense(loaded)
        assert {name: value.shape for name, value in dense.state_dict().items()} == {
            name: value.shape for name, value in models[family].state_dict().items()
        }
        torch.testing.assert_close(logits(dense), expected, rtol=1e-3, atol=1e-4)
        dense.save_pretrained(tmp_path / "dense")
        back = type(dense).from_pretrained(tmp_path / "dense").eval()
        torch.testing.assert_close(logits(back), logits(dense), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pattern", ["re:.*experts.*", "model.layers.0.mlp.experts", "MixtralExperts"])
def test_experts_alone_can_be_chosen(mixtral, pattern):
    report = mpo.compress(mixtral, 0.5, method="svd", targets=[pattern])
    assert {layer.name for layer in report.layers} == {
        f"model.layers.0.mlp.experts.{number}.{matrix}"
        for number in range(4)
        for matrix in ("gate_up_proj", "down_proj")
    }
    assert sum(isinstance(module, CompressedLayer) for module in mixtral.modules()) > 4


def separate_layers(model):
    return {
        f"{name}.{key}": layer
        for name, experts in separate_experts(model).items()
        for key, layer in experts.linears.items()
    }


class TestStatistics:
    @pytest.mark.parametrize("family", ["Mixtral", "GptOss", "Llama4"])
    def test_experts_see_the_tokens_that_reach_them_without_padding(self, models, family):
        model = copy.deepcopy(models[family])
        layers, inputs = separate_layers(model), batch()
        tokens = int(inputs["attention_mask"].sum())

        def loss(output):
            return output.logits[inputs["attention_mask"].bool()].square().sum()

        moments = collect_moments(model, layers, [inputs], loss=loss)
        for matrix in ("gate_up_proj", "down_proj"):
            assert sum(value.rows for name, value in moments.items() if name.endswith(matrix)) == 2 * tokens
        masked = inputs["attention_mask"] == 0
        again = collect_moments(
            model, layers, [{**inputs, "input_ids": inputs["input_ids"].masked_fill(masked, 9)}], loss=loss
        )
        for name, value in moments.items():
            assert again[name].rows == value.rows
            torch.testing.assert_close(again[name].activations, value.activations)
            torch.testing.assert_close(again[name].gradients, value.gradients, rtol=1e-4, atol=1e-6)

    def test_moments_are_those_of_the_routed_tokens(self, mixtral):
        """Against the definition, from the router's own choices."""
        layers, inputs = separate_layers(mixtral), batch()
        seen = {}
        block = mixtral.model.layers[0].mlp
        hook = block.experts.register_forward_pre_hook(
            lambda _, arguments: seen.update(zip("xiw", arguments, strict=True))
        )
        logits(mixtral)
        hook.remove()
        moments = collect_moments(mixtral, layers, [inputs])
        kept = inputs["attention_mask"].bool().flatten()
        for number in range(4):
            rows = seen["x"][kept & (seen["i"] == number).any(1)]
            value = moments[f"model.layers.0.mlp.experts.{number}.gate_up_proj"]
            assert value.rows == len(rows)
            torch.testing.assert_close(value.activations, rows.T @ rows / len(rows))

    @pytest.mark.parametrize("family", ["Mixtral", "Llama4"])
    def test_gradients_are_per_token_of_the_mixture(self, models, family):
        """So that errors of experts, which few tokens reach, compare with those of other layers."""
        model = copy.deepcopy(models[family])
        (experts,) = separate_experts(model).values()
        ids, outputs = batch()["input_ids"], []
        name = next(name for name, module in model.named_modules() if module is experts)
        layer = experts[1].down_proj

        def loss(output):
            return output.logits.square().sum()

        moments = collect_moments(model, {f"{name}.1.down_proj": layer}, [ids[:2], ids[2:]], loss=loss)
        layer.register_forward_hook(lambda _, __, output: (output.retain_grad(), outputs.append(output))[0])
        for part in (ids[:2], ids[2:]):
            loss(model(part)).backward()
        gradients = torch.cat([output.grad for output in outputs])
        value = moments[f"{name}.1.down_proj"]
        assert value.rows == len(gradients) < ids.numel()
        torch.testing.assert_close(value.gradients, gradients.T @ gradients / ids.numel(), rtol=1e-3, atol=1e-5)
        assert value.gradient_power == pytest.approx(float(gradients.square().mean(1).sum()) / ids.numel(), rel=1e-3)


def test_experts_that_no_token_reaches_stay_dense_with_their_reason(models):
    model = copy.deepcopy(models["Mixtral"])
    report = mpo.compress(model, 0.8, method="svd_llm", calibration=[{"input_ids": torch.tensor([[5]])}])
    dense = {layer.name: layer.reason for layer in report.layers if layer.rows is None}
    assert len(dense) == 4  # two matrices of each of two experts
    assert set(dense.values()) == {"no calibration batch reached it"}
    assert "stays dense: model.layers.0.mlp.experts." in str(report)
    kept = [name for name in dense if type(model.get_submodule(name)) is nn.Linear]
    assert kept == list(dense)
    # Their memory is their own, so that what was compressed is freed.
    for name in kept:
        weight = model.get_submodule(name).weight
        assert weight.untyped_storage().nbytes() == weight.numel() * 4
    with pytest.raises(ArgumentError, match=f"{kept[0]} is chosen by"):
        mpo.compress(
            copy.deepcopy(models["Mixtral"]),
            0.8,
            method="svd_llm",
            calibration=[{"input_ids": torch.tensor([[5]])}],
            targets=["Linear", kept[0]],
        )


class TestNothingElseChanges:
    def unchanged(self, model, before):
        assert {name: id(value) for name, value in model.named_parameters()} == before
        return not experts_of(model)

    def test_where_no_expert_is_compressed(self, mixtral):
        ids, expected = {name: id(value) for name, value in mixtral.named_parameters()}, logits(mixtral)
        mpo.compress(mixtral, 0.5, method="svd", dry_run=True)
        assert self.unchanged(mixtral, ids)
        require_possible(mixtral, 0.5, method="svd")
        assert self.unchanged(mixtral, ids)
        with pytest.raises(ArgumentError):
            mpo.compress(mixtral, 1e-6, method="svd")
        assert self.unchanged(mixtral, ids)
        assert torch.equal(logits(mixtral), expected)
        mpo.compress(mixtral, 0.5, method="svd", ignore=["MixtralExperts"])
        assert not experts_of(mixtral)

    def test_frozen_experts_stay_frozen(self, mixtral):
        mixtral.model.layers[0].mlp.experts.down_proj.requires_grad_(False)
        mpo.compress(mixtral, 0.5, method="svd", targets=["re:.*down_proj", "re:.*gate_up_proj"])
        mpo.to_dense(mixtral)
        experts = mixtral.model.layers[0].mlp.experts
        assert (experts.gate_up_proj.requires_grad, experts.down_proj.requires_grad) == (True, False)

    def test_a_tensor_that_other_code_gave_a_layer_is_kept(self, mixtral):
        with separated_experts(mixtral):
            mixtral.model.layers[0].mlp.experts[2].down_proj.weight.data = torch.full((16, 24), 7.0)
        assert not experts_of(mixtral)
        weight = mixtral.model.layers[0].mlp.experts.down_proj
        assert (weight[2] == 7).all()
        assert not (weight[1] == 7).any()

    def test_a_run_is_known_again(self, mixtral, tmp_path):
        """The weights of a model are the same whether its experts are fused or not."""
        open_state(tmp_path, mixtral, 0.5, method="svd")
        mpo.compress(mixtral, 0.5, method="svd", checkpoint=tmp_path)
        with separated_experts(build("Mixtral")) as reasons:
            assert reasons == {}

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda experts: experts.register_buffer("scale", torch.ones(4)), "scale besides"),
            (lambda experts: experts.register_forward_hook(print), "hooks"),
            (lambda experts: setattr(experts, "_is_expert_parallel", True), "over processes"),
            (lambda experts: setattr(experts, "down_proj", nn.Parameter(torch.ones(3, 16, 24))), "3 and 4 experts"),
            (lambda experts: setattr(experts, "forward", experts.forward), "its own forward"),
        ],
    )
    def test_experts_that_cannot_be_separated_stay_fused(self, mixtral, change, words):
        change(mixtral.model.layers[0].mlp.experts)
        report = mpo.compress(mixtral, 0.7, method="svd")
        assert not experts_of(mixtral)
        ((name, reason),) = report.shared
        assert name == "model.layers.0.mlp.experts"
        assert words in reason
        with pytest.raises(ArgumentError, match="cannot become separate"):
            separate_experts(mixtral, [name])

    def test_tied_experts_stay_fused(self):
        model = build("Mixtral", num_hidden_layers=2)
        model.model.layers[1].mlp.experts.down_proj = model.model.layers[0].mlp.experts.down_proj
        report = mpo.compress(model, 0.7, method="svd")
        assert [reason for _, reason in report.shared] == ["it shares a parameter with another module"] * 2

    def test_names_that_are_no_experts(self, mixtral):
        with pytest.raises(
            ArgumentError, match="no fused experts named 'x'; it has 1 such module, such as model.layers"
        ):
            separate_experts(mixtral, ["x"])


def test_numbers_beyond_the_experts_stand_for_none(mixtral):
    """As transformers routes tokens in expert parallelism."""
    fused = mixtral.model.layers[0].mlp.experts
    x, index, weights = torch.randn(5, 16), torch.tensor([[0, 4], [4, 4], [3, 1], [4, 2], [1, 0]]), torch.rand(5, 2)
    separate = separate_experts(mixtral)["model.layers.0.mlp.experts"]
    output = separate(x, index, weights)
    expected = torch.zeros_like(x)
    for token in range(5):
        for number, weight in zip(index[token].tolist(), weights[token], strict=True):
            if number < 4:
                expected[token] += weight * separate[number](x[token], separate._between)
    torch.testing.assert_close(output, expected)
    assert not separate(x, torch.full((5, 2), 4), weights).any()
    assert fused is not separate
    with pytest.raises(ArgumentError, match="got 1 argument"):
        separate(x)


@pytest.mark.parametrize(
    ("module", "name", "config", "first"),
    [
        (
            "step3p7",
            "Step3p7Experts",
            {"num_local_experts": 4, "hidden_act": "silu"},
            "gate_up_proj",
        ),  # a row of EXPERTS
        ("nemotron_h", "NemotronHExperts", {"n_routed_experts": 4, "mlp_hidden_act": "relu2"}, "up_proj"),  # no gate
    ],
)
def test_other_layouts(module, name, config, first):
    sizes = {"hidden_size": 16, "moe_intermediate_size": 8, "moe_latent_size": None, "_experts_implementation": "eager"}
    kind = getattr(import_module(f"transformers.models.{module}.modeling_{module}"), name)
    model = nn.ModuleDict({"experts": kind(SimpleNamespace(**sizes, **config))})
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    arguments = torch.randn(9, 16), torch.rand(9, 4).topk(2).indices, torch.rand(9, 2)
    expected = model.experts(*arguments)
    assert list(separate_experts(model)["experts"].linears)[:2] == [f"0.{first}", "0.down_proj"]
    torch.testing.assert_close(model.experts(*arguments), expected)
    fuse_experts(model)
    assert type(model.experts) is kind
    torch.testing.assert_close(model.experts(*arguments), expected, rtol=0, atol=0)


def test_an_exported_model_runs_every_expert():
    separate = separate_experts(build("Mixtral", num_local_experts=2))["model.layers.0.mlp.experts"]
    arguments = torch.randn(6, 16), torch.tensor([[0, 1]] * 6), torch.rand(6, 2)
    exported = torch.export.export(separate, arguments).module()
    other = torch.randn(6, 16), torch.tensor([[1, 0]] * 5 + [[2, 0]]), torch.rand(6, 2)
    torch.testing.assert_close(exported(*other), separate(*other))


def test_sequential_compression_leaves_experts_uncorrected():
    """The compressed model sends other tokens to an expert than the dense one."""
    model = build("Mixtral", num_hidden_layers=2)
    report = mpo.compress(model, 0.7, method="svd_llm", calibration=[batch(1), batch(2)], sequential=True)
    assert len(experts_of(model)) == 2
    assert {layer.form == "dense" for layer in report.layers if "experts" in layer.name} == {False}
    assert logits(model).isfinite().all()


def test_gradients_reach_compressed_experts(mixtral):
    mpo.compress(mixtral, 0.5, method="svd", targets=["re:.*experts.*"])
    mixtral(**batch()).logits.square().sum().backward()
    layers = [module for module in mixtral.modules() if isinstance(module, CompressedLayer)]
    assert len(layers) == 8
    assert all(parameter.grad is not None for layer in layers for parameter in layer.parameters())


class TestCheckpoints:
    @pytest.fixture
    def folder(self, mixtral, tmp_path):
        mpo.compress(mixtral, 0.5, method="svd")
        return mpo.save(mixtral, tmp_path / "model")

    def edited(self, folder, **fields):
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= fields
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def test_into_an_architecture_that_is_given(self, folder, mixtral):
        with torch.device("meta"):
            architecture = transformers.MixtralForCausalLM(mixtral.config)
        architecture.model.rotary_emb = copy.deepcopy(mixtral.model.rotary_emb)
        assert torch.equal(logits(mpo.load(folder, architecture)), logits(mixtral))

    def test_experts_that_stayed_dense_may_be_separate_too(self, models, tmp_path):
        model = copy.deepcopy(models["GptOss"])
        separate_experts(model)
        loaded = mpo.load(mpo.save(model, tmp_path))
        assert experts_of(loaded) == ["model.layers.0.mlp.experts"]
        assert torch.equal(logits(loaded), logits(model))

    @pytest.mark.parametrize(
        ("experts", "words"),
        [
            ([], "the model has no layer 'model.layers.0.mlp.experts.0"),
            (["model.layers.0.mlp"], "experts: the model has no fused experts named 'model.layers.0.mlp'"),
            (["model.layers.9.mlp.experts"], "no fused experts named"),
            (5, "experts: Input should be a valid list"),
        ],
    )
    def test_wrong_experts_are_named(self, folder, experts, words):
        with pytest.raises(CheckpointError, match=words):
            mpo.load(self.edited(folder, experts=experts))

    def test_a_number_of_experts_that_the_file_does_not_have(self, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_local_experts": 10**9}))
        with pytest.raises(CheckpointError, match="1,000,000,000 experts, the file .* tensors"):
            mpo.load(folder)


def test_the_fingerprint_is_that_of_the_separate_form(mixtral):
    with separated_experts(mixtral):
        inside = fingerprint(mixtral)
    separate_experts(mixtral)
    assert fingerprint(mixtral) == inside
