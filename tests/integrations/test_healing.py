"""HealingTrainer: the loss of ``finetune``, within the loop, checkpoints and evaluation of transformers."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
import transformers
from integrations.models import gpt2, llama, logits, mixtral
from integrations.test_saving import require_same

import mpochain as mpo
from mpochain.errors import ArgumentError, ShapeError
from mpochain.surgery import learning_rate_scales
from mpochain.surgery.finding import compressed_layers
from mpochain.train import FinetuneConfig

pytest.importorskip("accelerate")

from mpochain.integrations.transformers import HealingTrainer

LENGTH = 12
BLOCKS = ("model.layers.0", "model.layers.1")


def windows(count=8):
    return torch.randint(30, (count, LENGTH), generator=torch.Generator().manual_seed(3))


def batches(count=8):
    """Windows of which each has another number of labels, by masks and by ignored labels."""
    tokens = windows(count)
    labels, mask = tokens.clone(), torch.ones_like(tokens)
    for row in range(count):
        mask[row, LENGTH - row :] = 0
        labels[row, : row // 2] = -100
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def rows(data):
    count = len(next(iter(data.values())))
    return [{name: value[row] for name, value in data.items()} for row in range(count)]


def pair(build=llama, method="svd", **options):
    dense = build()
    model = copy.deepcopy(dense)
    mpo.compress(model, 0.6, method=method, **options)
    return dense, model


def arguments(folder, **options):
    settings = {"per_device_train_batch_size": 8, "max_steps": 1, "learning_rate": 1e-2, "save_strategy": "no"}
    settings |= {"lr_scheduler_type": "constant", "adam_beta2": 0.95, "logging_steps": 1, "report_to": []}
    return transformers.TrainingArguments(folder, use_cpu=True, disable_tqdm=True, seed=0, **settings | options)


CONFIGS = {
    "teacher": {},
    "teacher and text": {"distillation": 0.3, "temperature": 2.0},
    "text": {"distillation": 0.0},
    "hidden": {"hidden": 0.5, "hidden_layers": BLOCKS},
    "hidden alone": {"outputs": 0.0, "hidden": 0.5, "hidden_layers": BLOCKS},
    "attention": {"distillation": 0.5, "attention": 0.7},
}


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.runs_in("Trainer", "`HealingTrainer`: the step of `mpo.finetune`, accumulated too", "low rank")
def test_a_step_is_that_of_finetune(tmp_path, name, accumulate):
    """The same loss, gradients and step, whatever parts the batch is cut into."""
    dense, model = pair(method="tt_svd")
    other, teacher = copy.deepcopy(model), dense if name != "text" else None
    start = copy.deepcopy(model.state_dict())
    config = CONFIGS[name] | {"core_rates": True}
    result = mpo.finetune(
        model,
        batches(),
        teacher=teacher,
        config=FinetuneConfig(
            steps=1, warmup_steps=1, batch_size=8, learning_rate=1e-2, weight_decay=0.1, accumulate=accumulate, **config
        ),
    )
    args = arguments(
        tmp_path,
        weight_decay=0.1,
        per_device_train_batch_size=8 // accumulate,
        gradient_accumulation_steps=accumulate,
    )
    trainer = HealingTrainer(
        other, args, teacher=teacher, config=FinetuneConfig(**config), train_dataset=rows(batches())
    )
    trainer.train()
    # What is averaged over the kinds of hidden states and maps is weighed by labels, too.
    assert trainer.state.log_history[0]["loss"] == pytest.approx(result.losses[0], rel=1e-5)
    changed = 0.0
    for (name, expected), parameter in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-3, atol=1e-4, msg=name)
        changed += (start[name] - parameter).abs().max().item()
    assert changed > 0.01
    assert model.training == other.training
    assert other.config._attn_implementation == dense.config._attn_implementation != "eager"


def test_the_loss_of_a_batch_is_that_of_finetune_to_the_bit(tmp_path):
    dense, model = pair()
    args = arguments(tmp_path)
    for config in ({"distillation": 0.4}, {"hidden": 1.0, "hidden_layers": BLOCKS}):
        trainer = HealingTrainer(model, args, teacher=dense, config=FinetuneConfig(**config))
        value = trainer.compute_loss(model, {"input_ids": windows(1)})
        settings = FinetuneConfig(steps=1, warmup_steps=1, batch_size=1, **config)
        result = mpo.finetune(copy.deepcopy(model), windows(1), teacher=dense, config=settings)
        assert value.item() == result.losses[0]


def test_rates_of_cores_are_groups_of_the_optimiser(tmp_path):
    dense, model = pair(method="tt_svd")
    scales = learning_rate_scales(model)
    assert len(set(scales.values())) > 1
    args = arguments(tmp_path, optim="sgd", lr_scheduler_type="linear", max_steps=2, max_grad_norm=0)
    trainer = HealingTrainer(
        model, args, teacher=dense, config=FinetuneConfig(core_rates=True), train_dataset=rows(batches())
    )
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    by_parameter = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    for name, parameter in model.named_parameters():
        assert by_parameter[id(parameter)] == pytest.approx(1e-2 * scales.get(name, 1.0))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer.compute_loss(model.train(), {"input_ids": windows()}).backward()
    with torch.no_grad():
        expected = {
            name: before[name] - 1e-2 * scales.get(name, 1.0) * value.grad for name, value in model.named_parameters()
        }
    model.zero_grad()
    args.max_steps = 1
    trainer.train_dataset = rows({"input_ids": windows()})
    trainer.train()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name], rtol=1e-4, atol=1e-6)


def test_frozen_parameters_and_the_teacher_do_not_change(tmp_path):
    dense, model = pair()
    start = copy.deepcopy(model.state_dict())
    teacher = {name: value.clone() for name, value in dense.state_dict().items()}
    HealingTrainer(
        model,
        arguments(tmp_path, max_steps=2, weight_decay=0.1),
        teacher=dense.train(),
        config=FinetuneConfig(trainable="compressed"),
        train_dataset=rows(batches()),
    ).train()
    trained = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert trained
    assert not trained & {"model.embed_tokens.weight", "lm_head.weight"}
    assert all(torch.equal(value, teacher[name]) for name, value in dense.state_dict().items())
    assert dense.training
    assert all(parameter.grad is None for parameter in dense.parameters())
    assert all(parameter.requires_grad for parameter in [*model.parameters(), *dense.parameters()])


@pytest.mark.parametrize("build", [llama, gpt2], ids=["llama", "gpt2"])
@pytest.mark.runs_in("Trainer", "`HealingTrainer`: resumption to the bit", "low rank")
def test_a_training_that_is_resumed_ends_where_it_would_have_ended(tmp_path, build):
    dense, start = pair(build, targets=["re:.*"])
    if build is gpt2:  # with dropout, whose random numbers must go on
        start.config.resid_pdrop = start.config.embd_pdrop = 0.1
        for module in start.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1

    def trainer(model):
        args = arguments(
            tmp_path / "run",
            max_steps=6,
            save_strategy="steps",
            save_steps=2,
            lr_scheduler_type="cosine",
            warmup_steps=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
        )
        config = FinetuneConfig(distillation=0.5, core_rates=True)
        return HealingTrainer(model, args, teacher=dense, config=config, train_dataset=rows(batches()))

    whole = trainer(copy.deepcopy(start))
    whole.train()
    last = tmp_path / "run" / "checkpoint-6"
    require_same(last, whole.model.eval())
    assert compressed_layers(mpo.load(last)).keys() == compressed_layers(start).keys()
    rest = trainer(copy.deepcopy(start))
    rest.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, value in rest.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name
    logs = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (whole, rest)]
    assert logs[0] == logs[1]
    assert not torch.equal(logits(whole.model), logits(start))


def test_checkpoints_hold_no_teacher(tmp_path):
    dense, model = pair()
    args = arguments(tmp_path, save_strategy="steps", save_steps=1)
    HealingTrainer(model, args, teacher=dense, train_dataset=rows(batches())).train()
    (file,) = (tmp_path / "checkpoint-1").glob("*.safetensors")
    size = sum(value.nbytes for value in model.state_dict().values())
    assert size < file.stat().st_size < size + 10_000
    settings = json.loads((tmp_path / "checkpoint-1" / "config.json").read_text())
    assert settings["quantization_config"]["quant_method"] == "mpochain"


def test_evaluation_measures_the_same_loss_without_labels(tmp_path):
    dense, model = pair()
    data, seen = {"input_ids": windows()}, []

    def metrics(prediction):
        seen.append((prediction.predictions.shape, prediction.label_ids.shape))
        return {"rows": len(prediction.predictions)}

    trainer = HealingTrainer(
        model,
        arguments(tmp_path, per_device_eval_batch_size=4, eval_strategy="steps", eval_steps=1),
        teacher=dense,
        train_dataset=rows(data),
        eval_dataset=rows(data),
        compute_metrics=metrics,
    )
    values = trainer.evaluate()
    assert seen == [((8, LENGTH, 30), (8, LENGTH))]
    assert values["eval_rows"] == 8
    with torch.no_grad():
        expected = trainer.compute_loss(model, data).item()
    assert values["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert logged[-1] < expected


def test_the_best_model_is_kept_by_the_loss(tmp_path):
    dense, model = pair()
    args = arguments(
        tmp_path,
        max_steps=4,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        learning_rate=5e-2,
    )
    data = rows({"input_ids": windows()})
    trainer = HealingTrainer(model, args, teacher=dense, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-5)
    trainer.save_model(str(tmp_path / "best"))
    require_same(tmp_path / "best", trainer.model.eval())


def test_windows_without_labels_count_for_nothing(tmp_path):
    _, model = pair()
    data = batches()
    losses = {}
    for name, kept in (("all", 8), ("some", 4)):
        part = {key: value.clone() for key, value in data.items()}
        part["labels"][kept:] = -100
        args = arguments(
            tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, dataloader_drop_last=True
        )
        trainer = HealingTrainer(
            copy.deepcopy(model), args, config=FinetuneConfig(distillation=0.0), train_dataset=rows(part)
        )
        trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(range(8))
        trainer.train()
        losses[name] = trainer.state.log_history[0]["loss"]
    model.eval()
    part = {key: value[:4] for key, value in data.items()}
    expected = HealingTrainer(model, args, config=FinetuneConfig(distillation=0.0)).compute_loss(model, part)
    assert losses["some"] == pytest.approx(expected.item(), rel=1e-5)
    assert losses["all"] != pytest.approx(losses["some"], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_trained_in_float32(tmp_path, dtype):
    dense, model = pair()
    model = mpo.load(mpo.save(model.to(dtype), tmp_path / "small"))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    args = arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    trainer = HealingTrainer(model, args, teacher=dense.to(dtype), train_dataset=rows(batches()))
    trainer.train()
    assert {value.dtype for value in model.parameters()} == {dtype}
    assert any(not torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert mpo.load(tmp_path / "checkpoint-2").dtype == torch.float32
    trainer.save_model(str(tmp_path / "last"))
    require_same(tmp_path / "last", model.eval())


@pytest.mark.runs_in("Trainer", "`HealingTrainer`: layers in codes, by their scales", "codes")
def test_layers_in_codes_are_trained_by_their_scales(tmp_path):
    dense, model = pair(method="rtn")
    args = arguments(tmp_path, save_strategy="steps", save_steps=1)
    trainer = HealingTrainer(model, args, teacher=dense, train_dataset=rows(batches()))
    before = logits(model)
    trainer.train()
    assert not torch.equal(logits(model.eval()), before)
    trainer.save_model(str(tmp_path / "last"))
    require_same(tmp_path / "last", model)
    assert compressed_layers(mpo.load(tmp_path / "checkpoint-1")).keys() == compressed_layers(model).keys()


def test_other_models_learn_by_their_own_loss_and_a_teacher(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    dense = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=16, patch_size=8, **sizes))
    model = copy.deepcopy(dense.eval())
    mpo.compress(model, 0.7, method="svd")
    images = {"pixel_values": torch.randn(8, 3, 16, 16), "labels": torch.arange(8) % 2}
    settings = FinetuneConfig(steps=1, warmup_steps=1, batch_size=8, distillation=0.5)
    result = mpo.finetune(copy.deepcopy(model), images, teacher=dense, config=settings)
    args = arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    trainer = HealingTrainer(
        model,
        args,
        teacher=dense,
        config=FinetuneConfig(distillation=0.5),
        train_dataset=rows(images),
        eval_dataset=rows(images),
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(result.losses[0], rel=1e-4)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(result.losses[0], rel=1e-4)
    # A teacher alone needs no labels.
    trainer = HealingTrainer(model, args, teacher=dense, eval_dataset=rows({"pixel_values": images["pixel_values"]}))
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.runs_in("Trainer", "`HealingTrainer`: mixtures of experts", "experts as layers")
def test_mixtures_of_experts_are_trained(tmp_path):
    dense, model = pair(mixtral)
    trainer = HealingTrainer(model, arguments(tmp_path), teacher=dense, train_dataset=rows(batches()))
    before = logits(model)
    trainer.train()
    assert not torch.equal(logits(model.eval()), before)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.runs_in("PEFT", "adapters trained by `HealingTrainer` towards a dense teacher", "low rank")
def test_an_adapter_is_trained_towards_the_teacher(tmp_path):
    peft = pytest.importorskip("peft")
    dense, model = pair(method="interpolative", calibration=[windows()] * 4)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["rows", "coefficients"]))
    config = FinetuneConfig(hidden=0.5, hidden_layers=BLOCKS)
    args = arguments(tmp_path, max_steps=3)
    trainer = HealingTrainer(adapted, args, teacher=dense, config=config, train_dataset=rows(batches()))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


# Refusals.


def test_what_the_arguments_set_is_refused_in_the_configuration(tmp_path):
    dense, model = pair()
    with pytest.raises(ArgumentError, match="steps is max_steps.*accumulate is gradient_accumulation_steps"):
        HealingTrainer(model, arguments(tmp_path), teacher=dense, config=FinetuneConfig(steps=5, accumulate=2))
    with pytest.raises(ArgumentError, match="must be a mpochain.FinetuneConfig"):
        HealingTrainer(model, arguments(tmp_path), teacher=dense, config={"distillation": 1.0})


@pytest.mark.parametrize(
    ("options", "settings", "config", "words"),
    [
        ({"compute_loss_func": max}, {}, {}, "would replace the loss"),
        ({"model_init": llama}, {}, {}, "give model="),
        ({"optimizers": (torch.optim.SGD([torch.zeros(1)], 1.0), None)}, {}, {"core_rates": True}, "parameter_groups"),
        ({}, {"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor"),
        ({}, {"torch_compile": True}, {"hidden": 1.0, "hidden_layers": BLOCKS}, "torch_compile"),
        ({}, {}, {"distillation": 0.0}, "would not be used"),
        ({}, {}, {"trainable": ("nothing",)}, "matches no module"),
    ],
)
def test_contradictions_are_refused_before_training(tmp_path, options, settings, config, words):
    dense, model = pair()
    with pytest.raises(ArgumentError, match=words):
        HealingTrainer(
            model, arguments(tmp_path, **settings), teacher=dense, config=FinetuneConfig(**config), **options
        )


def test_a_loss_without_its_teacher_is_refused(tmp_path):
    _, model = pair()
    with pytest.raises(ArgumentError, match="need a teacher="):
        HealingTrainer(model, arguments(tmp_path), config=FinetuneConfig(hidden=1.0, hidden_layers=BLOCKS))
    with pytest.raises(ArgumentError, match="shares"):
        HealingTrainer(model, arguments(tmp_path), teacher=model)


def run(folder, model, dense, data=None, **config):
    data = rows(data or {"input_ids": windows()})
    HealingTrainer(model, arguments(folder), teacher=dense, config=FinetuneConfig(**config), train_dataset=data).train()


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path):
    _, model = pair()
    other = llama()
    other.resize_token_embeddings(40)
    with pytest.raises(ShapeError, match="the same vocabulary"):
        run(tmp_path, model, other)


@pytest.mark.parametrize(
    ("layer", "words"),
    [("model.layers.7", "has no module"), ("model.rotary_emb", "returned|does not|tuple|match"), ("model", "returned")],
)
def test_hidden_states_that_a_model_does_not_give_are_refused(tmp_path, layer, words):
    dense, model = pair()
    with pytest.raises((ArgumentError, ShapeError), match=words):
        run(tmp_path, model, dense, hidden=1.0, hidden_layers=(layer,))


def test_attention_of_a_module_that_returns_none_is_refused(tmp_path):
    class Wrapped(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, **_):
            return self.model(input_ids=input_ids).logits

    dense, model = pair()
    with pytest.raises(ArgumentError, match="attention"):
        run(tmp_path, Wrapped(model), Wrapped(dense), attention=1.0)


def test_windows_beyond_the_context_are_refused(tmp_path):
    dense, model = pair(gpt2)
    with pytest.raises(ShapeError, match="exceed the context"):
        run(tmp_path, model, dense, {"input_ids": torch.zeros(8, 70, dtype=torch.long)})


def test_a_model_that_reads_later_tokens_is_refused(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=40,
        is_decoder=False,
    )
    model = transformers.BertLMHeadModel(config)
    with pytest.raises(ArgumentError, match="no causal language model"):
        run(tmp_path, model, None)


def test_importing_mpochain_imports_no_trainer():
    code = "import sys, mpochain; assert not {'transformers', 'accelerate'} & sys.modules.keys()"
    code += "; import mpochain.integrations.transformers; assert 'transformers.trainer' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
