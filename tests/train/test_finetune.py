"""Finetuning of small models: it learns, resumes to the bit, leaves frozen parameters alone, refuses bad arguments."""

from __future__ import annotations

import copy
import itertools
import signal
import subprocess
import sys

import pytest
import torch
import transformers
from torch import nn

import mpochain as mpo
from mpochain import MPOError
from mpochain.compression import Chains
from mpochain.errors import ArgumentError, SpecError
from mpochain.surgery.calls import logits_of
from mpochain.train import FinetuneConfig, finetune, parameter_groups
from mpochain.train.losses import IGNORED, distillation_loss, next_tokens
from mpochain.train.stored import read_record

V, LENGTH = 23, 12
CONFIG = FinetuneConfig(steps=6, batch_size=4, warmup_steps=2, learning_rate=1e-2, checkpoint_every=1)


def teacher(dropout=0.0, **changes):
    torch.manual_seed(0)
    settings = transformers.GPT2Config(
        **{"vocab_size": V, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "use_cache": True, **changes},
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # a teacher that is sure of something
    return model


def compressed(dense, method="interpolative"):
    model = copy.deepcopy(dense)
    mpo.compress(model, 0.4, method=method, calibration=[windows()])
    return model


def windows(count=12, seed=1):
    return torch.randint(V, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


def divergence(model, dense, tokens):
    with torch.no_grad():
        return distillation_loss(logits_of(model(tokens)), next_tokens(tokens), logits_of(dense(tokens))).item()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(scope="module")
def dense():
    return teacher()


@pytest.fixture(scope="module")
def small(dense):
    return compressed(dense)


def test_a_compressed_model_comes_closer_to_its_teacher(dense, small, capsys):
    model, unseen = copy.deepcopy(small).eval(), windows(seed=2)
    before, weights = divergence(model, dense, unseen), copy.deepcopy(dense.state_dict())
    config = CONFIG.model_copy(update={"steps": 80, "evaluate_every": 40, "batch_size": 8, "learning_rate": 5e-3})
    modes = []

    def evaluate():
        modes.append(model.training)
        return {"divergence": divergence(model, dense, unseen)}

    result = mpo.finetune(model, windows(300), config=config, teacher=dense, evaluate=evaluate)
    assert divergence(model, dense, unseen) < 0.7 * before
    assert result.curve[-1].metrics["divergence"] < 0.7 * before
    assert result.tokens == 80 * 8 * (LENGTH - 1)
    assert modes == [False, False]
    # Nothing has changed but the parameters of the model.
    assert not model.training
    assert model.config.use_cache
    assert dense.config.use_cache
    assert all(parameter.grad is None for parameter in [*model.parameters(), *dense.parameters()])
    assert all(torch.equal(weights[name], value) for name, value in dense.state_dict().items())
    assert model.lm_head.weight is model.transformer.wte.weight
    assert capsys.readouterr().out == ""


def test_text_alone_is_learned_too(small):
    model = copy.deepcopy(small)
    tokens = torch.arange(10 * LENGTH).view(10, LENGTH) % V
    config = CONFIG.model_copy(update={"steps": 40})
    losses = finetune(model, tokens, config=config).losses
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("name", ["hidden", "hidden alone", "mixed"])
def test_other_losses_lead_to_the_teacher(dense, name):
    model, unseen = compressed(dense, "tt_svd"), windows(seed=2)
    before = divergence(model.eval(), dense, unseen)
    change = {
        "hidden": {"distillation": 0.0, "hidden": 1.0, "hidden_layers": ("transformer.h.0", "transformer.h.1")},
        "hidden alone": {"outputs": 0.0, "hidden": 2.0, "hidden_layers": ("transformer.wte", "transformer.h.1")},
        "mixed": {"distillation": 0.9, "temperature": 2.0, "core_rates": True},
    }[name]
    config = FinetuneConfig(**{**CONFIG.model_dump(), "steps": 30, **change})
    losses = finetune(model, windows(100), config=config, teacher=dense).losses
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    if name != "hidden":
        assert divergence(model.eval(), dense, unseen) < before


class TestTheKindsOfBatches:
    def losses(self, small, batches, **changes):
        return finetune(copy.deepcopy(small), batches, config=CONFIG.model_copy(update=changes)).losses

    def test_they_mean_the_same(self, small):
        tokens = windows()
        expected = self.losses(small, tokens)
        mask = torch.ones_like(tokens)
        for batches in (
            list(tokens),
            [tokens[:5], tokens[5:6], *tokens[6:]],
            {"input_ids": tokens},
            {"input_ids": tokens, "labels": tokens},
            [{"input_ids": row.tolist(), "attention_mask": one} for row, one in zip(tokens, mask, strict=True)],
        ):
            torch.testing.assert_close(self.losses(small, batches), expected)

    def test_padding_and_ignored_labels_do_not_count(self, small):
        tokens, other = windows(), windows()
        other[:, 8:] = 0
        mask = torch.ones_like(tokens)
        mask[:, 8:] = 0
        labels = tokens.masked_fill(mask == 0, -100)
        first = self.losses(small, {"input_ids": tokens, "attention_mask": mask})
        assert self.losses(small, {"input_ids": other, "attention_mask": mask}) == pytest.approx(first)
        assert self.losses(small, {"input_ids": tokens, "labels": labels}) == pytest.approx(first)

    def test_the_loss_is_that_of_the_model_itself(self, small):
        tokens = windows(4)
        expected = small(input_ids=tokens, labels=tokens).loss.item()
        assert self.losses(small, tokens)[0] == pytest.approx(expected)

    def test_each_epoch_sees_all_windows(self):
        seen = []

        class Watched(nn.Embedding):
            def forward(self, tokens):
                if self.training:
                    seen.append(tokens[:, 0].tolist())
                return super().forward(tokens)

        tokens = torch.arange(10)[:, None] + torch.arange(3)
        config = CONFIG.model_copy(update={"steps": 5, "batch_size": 4})
        finetune(Watched(V, V), tokens, config=config)
        flat = list(itertools.chain(*seen))
        assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
        assert flat[:10] != flat[10:]

    @pytest.mark.parametrize(
        ("batches", "message"),
        [
            ([], "batches is empty"),
            (torch.zeros(0, 5, dtype=torch.long), "have no next token"),
            (torch.zeros(9, 1, dtype=torch.long), r"of shape \(9, 1\) have no next token"),
            ([torch.zeros(5, dtype=torch.long), torch.zeros(4, dtype=torch.long)], "batch 1 has windows of 4 tokens"),
            (torch.zeros(9, 5), "batch 0: tokens must be integers, got torch.float32"),
            (torch.zeros(9, 5, 2, dtype=torch.long), r"tokens of shape \(9, 5, 2\)"),
            (torch.zeros(3, 5, dtype=torch.long), "batch_size=4 exceeds the 3 windows"),
            (
                torch.zeros(9, 17, dtype=torch.long),
                "windows of 17 tokens exceed the context of GPT2LMHeadModel",
            ),
            (torch.full((9, 5), V), f"window 0 has the token {V} at position 0; the model's vocabulary is 0 to 22"),
            (torch.full((9, 5), -1), "window 0 has the token -1"),
            ({"tokens": torch.zeros(9, 5)}, r"batch 0 has no input_ids, only \['tokens'\]"),
            ({"input_ids": windows(), "attention_mask": torch.ones(12, 3)}, r"attention_mask \(12, 3\) does not match"),
            ({"input_ids": windows(), "labels": windows() + 30}, "has the label"),
            ({"input_ids": windows(), "labels": torch.full((12, LENGTH), -100)}, "window 0 has nothing to predict"),
            ([{"input_ids": windows()}, windows()], r"batch 1 has|batch 0 has"),
            (iter([windows()]), "put them into a list"),
            ("text", "got str"),
            ([{"input_ids": "text"}], "batch 0: input_ids is str, which cannot be converted to a tensor"),
        ],
    )
    def test_bad_batches_are_refused_before_the_first_step(self, small, batches, message):
        model = copy.deepcopy(small)
        with pytest.raises(MPOError, match=message) as caught:
            finetune(model, batches, config=CONFIG)
        assert not isinstance(caught.value, SpecError), "which is for the shapes of chains"
        assert same(model, small)


class TestWhatIsTrained:
    def test_only_what_is_asked_for_and_nothing_frozen(self, small):
        model = copy.deepcopy(small)
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, mpo.InterpolativeLinear)}
        cores = {f"{name}.{core}.weight" for name in layers for core in ("rows", "coefficients")}
        frozen = sorted(cores)[0]
        model.get_parameter(frozen).requires_grad_(False)
        required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        finetune(model, windows(), config=CONFIG.model_copy(update={"trainable": "compressed"}))
        before = dict(small.named_parameters())
        changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        assert len(cores) > 2
        assert changed == cores - {frozen} | {name for name, value in before.items() if value.ndim == 1}
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == required

    @pytest.mark.parametrize("linears", [False, True])
    def test_light_tuning_leaves_the_central_core_of_every_chain(self, dense, linears):
        model = copy.deepcopy(dense)
        dims = {"re:.*c_attn": (4, 4, 3), "re:.*c_fc": (4, 4, 4)}
        specs = {name: mpo.ChainSpec(out, (2, 4, 2), 4) for name, out in dims.items()}
        mpo.compress(model, None, method=Chains(specs=specs), targets=list(specs))
        if linears:
            mpo.as_linears(model)
        before = copy.deepcopy(model)
        finetune(model, windows(), config=CONFIG.model_copy(update={"trainable": "auxiliary"}))
        changed = {
            name
            for name, value in model.named_parameters()
            if not torch.equal(value, before.get_parameter(name)) and value.ndim > 1
        }
        central = set()
        for name, layer in model.named_modules():
            if isinstance(layer, mpo.nn.CompressedLayer):
                central |= {f"{name}.{core}" for core in layer.central_cores()}
        cores = {
            f"{name}.{own}"
            for name, layer in model.named_modules()
            if isinstance(layer, mpo.nn.CompressedLayer)
            for own, value in layer.named_parameters()
            if value.ndim > 1
        }
        assert len(central) == 4
        assert changed == cores - central
        assert min(before.get_parameter(name).numel() for name in central) == 4**4

    def test_light_tuning_needs_chains(self, small):
        with pytest.raises(ArgumentError, match="the model has no chain of two sites or more; compress it with a meth"):
            finetune(copy.deepcopy(small), windows(), config=CONFIG.model_copy(update={"trainable": "auxiliary"}))

    def test_nothing_to_train(self, dense, small):
        with pytest.raises(ArgumentError, match="leaves no parameter to train"):
            finetune(copy.deepcopy(small).requires_grad_(False), windows(), config=CONFIG)
        with pytest.raises(MPOError, match="the model has no compressed layer"):
            finetune(dense, windows(), config=CONFIG.model_copy(update={"trainable": "compressed"}))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_trains_in_float32(self, dense, small, dtype):
        model, master = copy.deepcopy(small).to(dtype), copy.deepcopy(small).to(dtype).float()
        config = CONFIG.model_copy(update={"learning_rate": 1e-4})
        # The run of the same model in float32, whose products are those of the half-precision run.
        products = config.model_copy(update={"autocast": "bfloat16" if dtype == torch.bfloat16 else None})
        expected = finetune(master, windows(), config=products, teacher=dense)
        tied = model.lm_head.weight is model.transformer.wte.weight
        result = finetune(model, windows(), config=config, teacher=dense)
        assert result.losses == expected.losses, "no update is rounded to half precision"
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert same(model, master.to(dtype)), "rounded once, at the end"
        assert (model.lm_head.weight is model.transformer.wte.weight) is tied

    def test_half_precision_resumes_to_the_bit(self, small, tmp_path):
        start = copy.deepcopy(small).bfloat16()
        model, stopped, resumed = (copy.deepcopy(start) for _ in range(3))
        expected = finetune(model, windows(), config=CONFIG)

        def stop():
            raise KeyboardInterrupt

        config = CONFIG.model_copy(update={"evaluate_every": 3})
        with pytest.raises(KeyboardInterrupt):
            finetune(stopped, windows(), config=config, evaluate=stop, checkpoint=tmp_path / "a.state")
        assert {parameter.dtype for parameter in stopped.parameters()} == {torch.bfloat16}
        result = finetune(resumed, windows(), config=config, checkpoint=tmp_path / "a.state")
        assert result.losses == expected.losses
        assert same(resumed, model)

    def test_parameters_that_cannot_be_trained(self, small):
        model = copy.deepcopy(small)
        model.transformer.wpe.weight.data = model.transformer.wpe.weight.data.to(torch.float8_e4m3fn)
        with pytest.raises(MPOError, match="transformer.wpe.weight is torch.float8_e4m3fn, which cannot be trained"):
            finetune(model, windows(), config=CONFIG)


class TestTheTeacher:
    def refused(self, small, message, dense, **changes):
        with pytest.raises(MPOError, match=message):
            finetune(small, windows(), config=FinetuneConfig(**{**CONFIG.model_dump(), **changes}), teacher=dense)

    def test_a_teacher_that_does_not_fit(self, dense, small):
        model = copy.deepcopy(small)
        self.refused(model, "the teacher has a vocabulary of 29 and the model one of 23", teacher(vocab_size=29))
        self.refused(model, "the teacher shares transformer.wte.weight with the model", model)
        self.refused(model, "distillation=0.5, hidden=0.0 and attention=0.0 need a teacher", None, distillation=0.5)
        self.refused(model, "it would not be used", dense, distillation=0.0)
        self.refused(
            model, "has no module 'transformer.h.9'; similar", dense, hidden=1.0, hidden_layers=("transformer.h.9",)
        )
        self.refused(
            model, "hidden states .* do not match", teacher(n_embd=8), hidden=1.0, hidden_layers=("transformer.h.0",)
        )
        assert same(model, small)

    def test_its_own_mode_comes_back(self, dense, small):
        training = copy.deepcopy(dense).train()
        finetune(copy.deepcopy(small), windows(), config=CONFIG, teacher=training)
        assert training.training


class TestMemory:
    """Options that save memory do not change the result."""

    def test_parts_add_up_to_the_batch(self, dense, small):
        tokens = windows()
        labels = tokens.clone()
        labels[::2, 3:] = -100  # parts of different numbers of labels
        undivided, split = copy.deepcopy(small), copy.deepcopy(small)
        batches = {"input_ids": tokens, "labels": labels}
        hidden = {"hidden": 0.5, "hidden_layers": ("transformer.h.0",)}
        config = FinetuneConfig(**{**CONFIG.model_dump(), "steps": 3, **hidden})
        expected = finetune(undivided, batches, config=config, teacher=dense)
        got = finetune(split, batches, config=config.model_copy(update={"accumulate": 4}), teacher=dense)
        torch.testing.assert_close(got.losses, expected.losses, rtol=1e-4, atol=1e-6)
        assert got.tokens == expected.tokens

    def test_checkpointed_blocks_have_the_same_gradients(self, small):
        plain, model = copy.deepcopy(small), copy.deepcopy(small)
        config = CONFIG.model_copy(update={"steps": 2})
        calls = 0

        def count(*_):
            nonlocal calls
            calls += 1

        model.transformer.h[0].ln_1.register_forward_hook(count)
        expected = finetune(plain, windows(), config=config)
        got = finetune(model, windows(), config=config.model_copy(update={"gradient_checkpointing": True}))
        assert calls == 3 + 2 * 2, "three to check the model, two of them that it is causal, and two in a step"
        torch.testing.assert_close(got.losses, expected.losses)
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert not model.transformer.gradient_checkpointing
        with pytest.raises(MPOError, match=r"Embedding has no gradient_checkpointing_enable\(\)"):
            finetune(nn.Embedding(V, V), windows(), config=CONFIG.model_copy(update={"gradient_checkpointing": True}))

    def test_autocast_keeps_parameters_and_losses_in_float32(self, dense, small):
        model = copy.deepcopy(small)
        seen = set()
        model.transformer.h[0].mlp.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
        config = CONFIG.model_copy(update={"autocast": "bfloat16"})
        losses = finetune(model, windows(), config=config, teacher=dense).losses
        assert seen == {torch.bfloat16}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        expected = finetune(copy.deepcopy(small), windows(), config=CONFIG, teacher=dense).losses
        assert losses == pytest.approx(expected, rel=0.1)


# Run in a process of its own, once killed in the middle of a step, then resumed and compared with an uninterrupted run.
_RUN = """
import os, signal, sys
from pathlib import Path
import torch, mpochain as mpo
from torch import nn
path, fatal = Path(sys.argv[1]), int(sys.argv[2])
def run(checkpoint):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Embedding(23, 16), nn.Linear(16, 16), nn.Linear(16, 23))
    model = nn.Sequential(nn.Embedding(23, 16), nn.Dropout(0.2), mpo.MPOLinear(16, 16, max_bond=3), nn.Linear(16, 23))
    tokens = torch.randint(23, (10, 7))
    steps = []
    def step(module, inputs, output):
        steps.append(1) if module.training else None
        if len(steps) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
    if fatal:
        model[2].register_forward_hook(step)
    config = mpo.FinetuneConfig(
        steps=6, batch_size=4, warmup_steps=2, checkpoint_every=1, distillation=0.5, accumulate=2
    )
    torch.manual_seed(fatal)  # the state of this generator does not matter
    return model, mpo.finetune(model, tokens, config=config, teacher=dense, checkpoint=checkpoint)
model, result = run(path)
uninterrupted, expected = run(None)
assert result.losses == expected.losses and len(result.losses) == 6
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), uninterrupted.parameters(), strict=True))
"""


def test_a_killed_run_goes_on_to_the_bit(tmp_path):
    path = tmp_path / "state"

    def run(fatal):
        command = [sys.executable, "-c", _RUN, str(path), str(fatal)]
        return subprocess.run(command, capture_output=True, text=True)

    killed = run(7)  # in the first half of step 4
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert read_record(path)["result"]["steps"] == 3
    again = run(0)
    assert again.returncode == 0, again.stderr


def test_dropout_leaves_the_generator_of_torch_alone(small):
    model = compressed(teacher(dropout=0.3))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = finetune(copy.deepcopy(model), windows(), config=CONFIG).losses
    assert torch.equal(torch.rand(3), expected)
    assert finetune(copy.deepcopy(model), windows(), config=CONFIG).losses == first
    other = CONFIG.model_copy(update={"seed": 1, "batch_size": 12})
    same_windows = CONFIG.model_copy(update={"batch_size": 12})
    model, twin = copy.deepcopy(model), copy.deepcopy(model)
    assert (
        finetune(model, windows(), config=other).losses[0] != finetune(twin, windows(), config=same_windows).losses[0]
    )


def test_the_state_of_another_run_is_refused(dense, small, tmp_path):
    path = tmp_path / "state"
    finetune(copy.deepcopy(small), windows(), config=CONFIG, teacher=dense, checkpoint=str(path))
    for change, tokens, other_teacher, message in [
        ({"temperature": 2.0}, windows(), dense, "temperature=1.0, not 2.0"),
        ({"distillation": 0.5}, windows(), dense, "distillation=1.0, not 0.5"),
        ({}, windows(seed=3), dense, "a run with data="),
        ({}, windows(), teacher(n_head=4, n_inner=20), "a run with teacher="),
    ]:
        config = CONFIG.model_copy(update=change)
        model = copy.deepcopy(small)
        with pytest.raises(MPOError, match=message):
            finetune(model, tokens, config=config, teacher=other_teacher, checkpoint=path)
        assert same(model, small)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_before_the_step(small, tmp_path, where):
    path, model, calls = tmp_path / "state", copy.deepcopy(small), 0

    def spoil(module, inputs, output):
        nonlocal calls
        calls += model.training
        if calls == 4:
            if where == "loss":
                return output * torch.nan
            output.register_hook(lambda gradient: gradient * torch.inf)
        return None

    hook = model.transformer.ln_f.register_forward_hook(spoil)
    with pytest.raises(mpo.errors.NonFiniteError, match="step 4: .* the parameters are still those of step 3"):
        finetune(model, windows(), config=CONFIG, checkpoint=path)
    hook.remove()
    assert read_record(path)["result"]["steps"] == 3
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    resumed, uninterrupted = copy.deepcopy(small), copy.deepcopy(small)
    finetune(resumed, windows(), config=CONFIG, checkpoint=path)
    finetune(uninterrupted, windows(), config=CONFIG)
    assert same(resumed, uninterrupted)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"accumulate": 3}, "accumulate=3 does not divide batch_size=4"),
        ({"steps": 3, "warmup_steps": 5}, "warmup_steps=5 exceeds steps=3"),
        ({"hidden": 1.0}, "go together"),
        ({"hidden_layers": ("a",)}, "go together"),
        ({"outputs": 0.0}, "leave nothing to learn from"),
        ({"distillation": 1.5}, "less than or equal to 1"),
        ({"temperature": 0.0}, "greater than 0"),
        ({"autocast": "float8"}, "bfloat16"),
        ({"trainable": "some"}, "compressed"),
    ],
)
def test_bad_configurations(bad, message):
    with pytest.raises(ArgumentError, match=message):
        FinetuneConfig(**bad)


def test_the_default_warm_up_is_no_longer_than_the_run():
    config = FinetuneConfig(steps=3)
    assert config.warmup_steps == 3
    assert FinetuneConfig(**config.model_dump(exclude_unset=True) | {"steps": 50}).warmup_steps == 5


def test_groups_of_parameters(small):
    model = copy.deepcopy(small)
    model.transformer.wpe.weight.requires_grad_(False)
    groups = parameter_groups(model, 0.5)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped}) == len(list(model.parameters())) - 1
    assert all(group["lr"] == 0.5 * group["scale"] for group in groups)
    assert not any("weight_decay" in group for group in groups)
    decaying = parameter_groups(model, 0.5, weight_decay=0.1)
    assert all(group["lr"] * group["weight_decay"] == pytest.approx(0.05) for group in decaying)
    with pytest.raises(MPOError, match=r"the model has no parameters \['nothing'\]"):
        parameter_groups(model, 0.5, scales={"nothing": 2.0})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:'pin_memory'")
def test_the_trainer_of_transformers_finetunes_too(dense, small, tmp_path):
    """An example for users of the Trainer: it trains a compressed model, with learning rates by fan-in."""

    class DistillationTrainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            with torch.no_grad():
                teacher_logits = dense(inputs["input_ids"]).logits
            output = model(inputs["input_ids"])
            loss = distillation_loss(output.logits, next_tokens(inputs["labels"]), teacher_logits)
            return (loss, output) if return_outputs else loss

    model, tokens = copy.deepcopy(small), windows(16)
    before = divergence(model.eval(), dense, tokens)
    optimizer = torch.optim.AdamW(parameter_groups(model, 3e-3), weight_decay=0.0)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    DistillationTrainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None)).train()
    assert divergence(model.eval(), dense, tokens) < 0.9 * before
    rates = {round(group["initial_lr"] / 3e-3, 6) for group in optimizer.param_groups}
    assert rates == {round(group["scale"], 6) for group in parameter_groups(model, 1.0)}
    assert IGNORED == -100
