"""Finetuning of models that do not predict the next token: pairs of texts, classes, images, sound."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures.checking import build
from architectures.inputs import batch_for

import mpochain as mpo
from mpochain import MPOError
from mpochain.surgery.calls import predictions_of
from mpochain.train import FinetuneConfig, finetune
from mpochain.train.examples import Examples, predicts_next_tokens
from mpochain.train.prediction_loss import prediction_loss

CONFIG = FinetuneConfig(steps=6, batch_size=4, learning_rate=5e-3, warmup_steps=1)


def examples(model, labels=None):
    """Four examples, with labels of a shape."""
    batches = [batch_for(model, seed) for seed in (1, 2)]
    batch = {name: torch.cat([part[name] for part in batches]) for name in batches[0]}
    if labels is not None:
        batch["labels"] = torch.randint(2, (4, *labels), generator=torch.Generator().manual_seed(3))
        batch.pop("decoder_input_ids", None)  # the model makes them of the labels
    return batch


def loss_of(model, batch):
    with torch.no_grad():
        return float(model.eval()(**batch).loss)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("T5ForConditionalGeneration", (12,)),
        ("WhisperForConditionalGeneration", (12,)),
        ("BertForTokenClassification", (12,)),
        ("ViTForImageClassification", ()),
    ],
)
def test_their_own_loss_falls(name, labels):
    model = build(name)
    batch = examples(model, labels)
    before = loss_of(model, batch)
    result = finetune(model, batch, config=CONFIG)
    assert loss_of(model, batch) < 0.99 * before
    assert result.losses[0] == pytest.approx(before, rel=0.3)  # dropout is active in training


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "CLIPModel", "Wav2Vec2ForCTC", "ViTModel"])
def test_they_learn_from_a_teacher_without_labels(name):
    dense = build(name)
    batch = examples(dense)
    model = copy.deepcopy(dense)
    mpo.compress(model, 0.5, method="svd")
    data = Examples.of(batch, model)

    def distance():
        with torch.no_grad():
            outputs = [predictions_of(network.eval()(**batch)) for network in (model, dense)]
        return float(prediction_loss(*outputs, data))

    before = distance()
    finetune(model, batch, teacher=dense, config=CONFIG.model_copy(update={"learning_rate": 1e-3}))
    assert distance() < 0.9 * before


def test_images_and_texts_are_contrasted_with_one_another():
    model = build("CLIPModel")
    batch = examples(model)
    before = loss_of(model, {**batch, "return_loss": True})
    finetune(model, batch, config=CONFIG)
    assert loss_of(model, {**batch, "return_loss": True}) < before
    with pytest.raises(MPOError, match="use accumulate=1"):
        finetune(model, batch, config=CONFIG.model_copy(update={"accumulate": 2}))


def test_masked_positions_do_not_count():
    dense, other = build("BertForMaskedLM"), build("BertForMaskedLM")
    tokens = examples(dense)["input_ids"]
    mask = torch.ones_like(tokens)
    mask[:, 8:] = 0
    data = Examples.of({"input_ids": tokens, "attention_mask": mask}, dense)
    target = torch.randn(4, 12, 64, generator=torch.Generator().manual_seed(0))
    changed = target.clone()
    changed[:, 8:] += torch.randn(4, 4, 64)
    for name in ("logits", "last_hidden_state"):
        assert float(prediction_loss({name: changed}, {name: target}, data)) == 0
    changed[:, :8] += torch.randn(4, 8, 64)
    assert float(prediction_loss({"logits": changed}, {"logits": target}, data)) > 0
    labels = torch.full_like(tokens, -100)
    labels[:, 0] = 7
    assert Examples.of({"input_ids": tokens, "labels": labels}, other).targets == 4


def test_classes_of_pixels_lie_on_the_second_axis():
    a, b = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    data = Examples.of(torch.zeros(4, 3, 8, 8), build("ViTModel"))
    log_p, log_q = b.log_softmax(1), a.log_softmax(1)
    expected = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    torch.testing.assert_close(prediction_loss({"logits": a}, {"logits": b}, data), expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LlamaForCausalLM", True),
        ("GPT2LMHeadModel", True),
        ("BartForCausalLM", True),
        ("BartForConditionalGeneration", False),
        ("BertForMaskedLM", False),
        ("BertModel", False),
        ("ViTModel", False),
    ],
)
def test_which_models_predict_the_next_token(name, expected):
    assert predicts_next_tokens(build(name)) is expected


class TestRefusals:
    def test_a_model_that_sees_later_tokens_cannot_learn_the_next_one(self):
        model = build("BertLMHeadModel")
        tokens = examples(model)["input_ids"]
        with pytest.raises(MPOError, match="BertLMHeadModel is no causal language model"):
            finetune(model, tokens, config=CONFIG)

    def test_without_labels_and_teacher_there_is_nothing_to_learn(self):
        model = build("ViTForImageClassification")
        with pytest.raises(MPOError, match="computed no loss"):
            finetune(model, examples(model), config=CONFIG)

    def test_arguments_that_the_model_lacks(self):
        model = build("T5ForConditionalGeneration")
        tokens = {"input_ids": examples(model)["input_ids"]}
        with pytest.raises(MPOError, match=r"T5ForConditionalGeneration cannot be called with input_ids: "):
            finetune(model, tokens, teacher=copy.deepcopy(model), config=CONFIG)

    def test_labels_that_are_no_classes(self):
        model = build("ViTForImageClassification")
        batch = examples(model, ())
        batch["labels"][2] = 5
        with pytest.raises(MPOError, match="labels go up to 5, but ViTForImageClassification has 2 classes"):
            finetune(model, batch, config=CONFIG)

    def test_examples_that_do_not_match(self):
        model = build("ViTForImageClassification")
        batch = examples(model, ())
        with pytest.raises(MPOError, match="first axes of the arguments differ"):
            finetune(model, {**batch, "labels": batch["labels"][:3]}, config=CONFIG)
        with pytest.raises(MPOError, match="exceeds the 4 examples"):
            finetune(model, batch, config=CONFIG.model_copy(update={"batch_size": 8}))
