"""A dozen of the architectures of transformers, as different as can be; ``make architectures`` checks all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import mpochain as mpo
from architectures import checking, page, run
from architectures.checking import build, check, require_equal
from architectures.classes import classes
from architectures.inputs import batch_for

# What each stands for.
DOZEN = {
    "GPT2LMHeadModel": "transposed weights, tied head",
    "FalconForCausalLM": "a class of linear layers of its own",
    "MixtralForCausalLM": "experts in one tensor, a router",
    "MambaForCausalLM": "states in place of attention, weights that are read without a call",
    "Gemma3ForConditionalGeneration": "a model of images inside, with a configuration of its own",
    "T5ForConditionalGeneration": "encoder and decoder with copies of one configuration",
    "EncoderDecoderModel": "two models in one",
    "BertForMaskedLM": "bidirectional, tied decoder",
    "LlamaForSequenceClassification": "one prediction for a text",
    "ViTForImageClassification": "images",
    "CLIPModel": "images and texts, contrasted",
    "Wav2Vec2ForCTC": "sound, convolutions with weight norm",
}


@pytest.mark.parametrize("name", DOZEN)
def test_it_goes_through_every_form(name):
    outcome = check(build(name), "interpolative")
    assert outcome["outcome"] == "equal", outcome
    assert outcome["layers"] > 0


@pytest.mark.parametrize("method", ["svd", "tt_svd"])
def test_other_methods(method):
    assert check(build("LlamaForCausalLM"), method)["outcome"] == "equal"


class TestTheSuiteFinds:
    def test_a_dense_form_with_other_numbers(self, monkeypatch):
        real = mpo.to_dense

        def shifted(model):
            model = real(model)
            with torch.no_grad():
                next(model.parameters()).add_(0.5)
            return model

        monkeypatch.setattr(mpo, "to_dense", shifted)
        outcome = check(build("LlamaForCausalLM"), "svd")
        assert (outcome["outcome"], outcome["step"]) == ("fault", "to_dense")

    def test_an_error_that_is_not_of_this_library(self, monkeypatch):
        monkeypatch.setattr(mpo, "load", lambda folder: {}["nothing"])
        outcome = check(build("LlamaForCausalLM"), "svd")
        assert (outcome["outcome"], outcome["step"]) == ("fault", "load")
        assert outcome["message"].startswith("KeyError")

    def test_a_refusal_with_its_reason(self):
        outcome = check(torch.nn.Linear(3, 3), "unknown")
        assert outcome["outcome"] == "fault", "no transformers model, so not even inputs"
        outcome = check(build("LlamaForCausalLM"), "unknown")
        assert outcome["outcome"] == "refused"
        assert "unknown" in outcome["message"]

    def test_differences(self):
        one = [torch.tensor([1.0, 2.0])]
        require_equal(one, [torch.tensor([1.0, 2.0 + 1e-6])], 1e-6)
        for other in ([torch.tensor([1.0, 2.1])], [torch.tensor([1.0, torch.inf])], [torch.ones(3)], []):
            with pytest.raises(AssertionError):
                require_equal(one, other, 1e-6)


def test_classes_of_one_process_each(monkeypatch, tmp_path):
    """A class that ends its process is a fault, and the next run goes on after it."""
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(run, "METHODS", ("svd",))
    real = run.build

    def built(name):
        if name == "BertForMaskedLM":
            import os

            os._exit(9)
        return real(name)

    monkeypatch.setattr(run, "build", built)
    run.run(["BertForMaskedLM", "OPTForCausalLM"])
    results = run.read_results()["classes"]
    assert results["BertForMaskedLM"]["methods"]["svd"]["outcome"] == "fault"
    assert results["OPTForCausalLM"]["methods"]["svd"]["outcome"] == "equal"
    monkeypatch.setattr(page, "read_results", run.read_results)
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    page.write_page()
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| `BertForMaskedLM` | svd | process | the process ended with status 9" in text


def test_inputs_are_what_a_model_reads():
    assert set(batch_for(build("CLIPModel"))) == {"input_ids", "pixel_values"}
    assert set(batch_for(build("T5ForConditionalGeneration"))) == {"input_ids", "decoder_input_ids"}
    assert set(DOZEN) <= set(classes())
    assert all(hasattr(transformers, name) for name in DOZEN)


def test_the_page_is_that_of_the_results(monkeypatch, tmp_path):
    committed = page.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    page.write_page()
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == committed
    results = json.loads(Path(run.RESULTS).read_text(encoding="utf-8"))
    assert results["setting"]["methods"] == list(checking.METHODS)
