"""Compressed models written by ``save_pretrained``, ``push_to_hub`` and Trainer, with real files."""

from __future__ import annotations

import copy
import json
import pickle

import huggingface_hub
import pytest
import torch
import transformers
from integrations.models import MODELS, gpt2, llama, logits
from tiny import write_model

import mpochain as mpo
from mpochain.errors import ArgumentError
from mpochain.nn import InterpolativeLinear
from mpochain.surgery.finding import compressed_layers


def read(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def compressed(name, **options):
    model = MODELS[name]()
    mpo.compress(model, 0.6, method="svd", **options)
    return model


def require_same(folder, model):
    """The folder gives the model, by both readers."""
    expected = logits(model)
    assert torch.equal(logits(mpo.load(folder)), expected)
    assert torch.equal(logits(read(folder)), expected)
    assert not (folder / "model.safetensors").exists()


# D1: a compressed model that is saved by transformers is the compressed model, and no dense one of random weights.


@pytest.mark.parametrize("shard", ["50GB", "5KB"])
@pytest.mark.parametrize("targets", [None, ["re:.*"]], ids=["linears", "embeddings, too"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.runs_in("transformers", "`save_pretrained`, in shards too", "low rank, embeddings in codes")
def test_save_pretrained_writes_the_compressed_model(tmp_path, name, targets, shard):
    model = compressed(name, targets=targets)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    require_same(tmp_path, model)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is (shard == "5KB")


@pytest.mark.parametrize("reader", [mpo.load, read])
def test_loading_and_saving_again_gives_the_same(tmp_path, reader):
    model = compressed("tied", targets=["re:.*"])
    model.save_pretrained(tmp_path / "a")
    reader(tmp_path / "a").save_pretrained(tmp_path / "b")
    files = [sorted(file.name for file in (tmp_path / part).iterdir()) for part in "ab"]
    assert files[0] == files[1]
    for name in files[0]:
        if name != "config.json":
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    configs = [json.loads((tmp_path / part / "config.json").read_text()) for part in "ab"]
    assert configs[0] == configs[1]


def test_both_ways_of_saving_hold_the_same_layers_and_tensors(tmp_path):
    model = compressed("mixtral")
    mpo.save(model, tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    descriptions = [json.loads((tmp_path / part / "config.json").read_text())["quantization_config"] for part in "ab"]
    for key in ("layers", "tied", "experts"):
        assert descriptions[0][key] == descriptions[1][key]
    require_same(tmp_path / "b", mpo.load(tmp_path / "a"))


def test_layers_that_were_put_in_by_hand_are_saved(tmp_path):
    model = llama()
    model.model.layers[1].mlp.up_proj = InterpolativeLinear(24, 40, 3, bias=False)
    model.save_pretrained(tmp_path)
    require_same(tmp_path, model)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), torch.compile],
    ids=["copy", "deepcopy", "pickle", "compile"],
)
def test_copies_are_saved(tmp_path, copied):
    model = compressed("gpt2")
    copied(model).save_pretrained(tmp_path)
    require_same(tmp_path, model)


def test_later_edits_are_part_of_what_is_saved(tmp_path):
    model = compressed("llama")
    model.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["layers"]
    name = next(iter(compressed_layers(model)))
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, model.get_submodule(name).to_dense())
    model.save_pretrained(tmp_path)
    require_same(tmp_path, model)
    after = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["layers"]
    assert set(before) - set(after) == {name}


def test_a_model_that_is_dense_again_is_saved_as_a_dense_one(tmp_path):
    model = read(mpo.save(compressed("tied", targets=["re:.*"]), tmp_path))
    mpo.to_dense(model)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    loaded, info = read(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(loaded), logits(model))


def test_a_dense_model_in_the_folder_is_replaced(tmp_path):
    llama().save_pretrained(tmp_path, max_shard_size="5KB")
    model = compressed("gpt2")
    model.save_pretrained(tmp_path)
    require_same(tmp_path, model)
    assert len(list(tmp_path.glob("*.safetensors*"))) == 1


def test_dense_models_are_saved_as_before(tmp_path):
    gpt2().save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_a_state_that_is_given_is_written(tmp_path):
    model = compressed("tied", targets=["re:.*"])
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    model.save_pretrained(tmp_path, state_dict=other.state_dict())
    require_same(tmp_path, other)


@pytest.mark.refused_in("transformers", "formats of `save_pretrained` that would lose layers")
def test_what_a_compressed_model_cannot_be_saved_as_is_refused(tmp_path):
    model = compressed("gpt2")
    for options in ({"variant": "fp16"}, {"distributed_checkpoint": True}):
        with pytest.raises(ArgumentError, match="is not possible for a compressed model"):
            model.save_pretrained(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_the_type_of_the_model_is_stated(tmp_path):
    model = compressed("gpt2").bfloat16()
    for folder, save in ((tmp_path / "a", mpo.save), (tmp_path / "b", lambda model, to: model.save_pretrained(to))):
        save(model, folder)
        assert read(folder).dtype == torch.bfloat16
        assert torch.equal(logits(read(folder)), logits(model))


def test_a_class_of_ones_own_is_saved_and_read(tmp_path):
    class Own(transformers.LlamaForCausalLM):
        pass

    model = Own(llama().config).eval()
    model.model.layers[0].mlp.up_proj = InterpolativeLinear(24, 40, 3, bias=False)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(Own.from_pretrained(tmp_path)), logits(model))


# The hub.


class Hub:
    """What a publication asks of the hub's client, kept in memory."""

    def __init__(self, files=()):
        self.files, self.calls = set(files), []

    def __call__(self, token=None):
        return self

    def create_repo(self, repo_id, **options):
        self.calls.append(repo_id)
        return huggingface_hub.RepoUrl(f"https://huggingface.co/org/{repo_id}")

    def file_exists(self, repo_id, name, **options):
        return name in self.files

    def upload_folder(self, *, folder_path, ignore_patterns, **options):
        import pathlib

        self.options = options
        names = {file.name for file in pathlib.Path(folder_path).iterdir()}
        self.files |= names - set(ignore_patterns or ())
        self.text = (pathlib.Path(folder_path) / "config.json").read_text()


@pytest.mark.parametrize("card", [True, False])
@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
@pytest.mark.runs_in("transformers", "`push_to_hub` with a model card", "low rank")
def test_a_compressed_model_is_published_with_its_card(tmp_path, monkeypatch, way, card):
    hub = Hub(["README.md"] if card else [])
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    model = compressed("gpt2")
    if way == "push_to_hub":
        model.push_to_hub("small", commit_message="Add it", private=True)
    else:
        model.save_pretrained(tmp_path / "small", push_to_hub=True, commit_message="Add it", private=True)
    assert hub.calls == ["small"]
    assert hub.options["commit_message"] == "Add it"
    assert hub.options["repo_id"] == "org/small"
    assert json.loads(hub.text)["quantization_config"]["quant_method"] == "mpochain"
    assert "README.md" in hub.files
    assert len([name for name in hub.files if name.endswith(".safetensors")]) == 1


# The card.


def test_the_card_says_what_the_model_is(tmp_path):
    model = read(write_model(tmp_path / "base-model"))
    mpo.compress(model, "60%", method="svd")
    model.save_pretrained(tmp_path / "small")
    card = (tmp_path / "small" / "README.md").read_text()
    for words in (
        'base_model: "base-model"',
        "mpochain.compress(model, '60%', method='svd')",
        "| model.layers.*.mlp.down_proj ",
        "weight error",
        "import mpochain",
        "layers of it are compressed (",
    ):
        assert words in card
    assert huggingface_hub.ModelCard(card).data.library_name == "transformers"
    again = mpo.load(tmp_path / "small")
    mpo.save(again, tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text().count("mpochain.compress(model, '60%'") == 1


@pytest.mark.parametrize("save", [mpo.save, lambda model, folder: model.save_pretrained(folder)])
def test_a_card_of_the_user_is_never_replaced(tmp_path, save):
    (tmp_path / "README.md").write_text("mine")
    save(compressed("gpt2"), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


# Trainer.


class Texts(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, k):
        ids = (torch.arange(12) + k) % 30
        return {"input_ids": ids, "labels": ids}


def trainer_of(model, folder, **options):
    pytest.importorskip("accelerate")
    settings = {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "eval_strategy": "steps", "learning_rate": 1e-2}
    arguments = transformers.TrainingArguments(
        folder,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
        **settings | options,
    )
    return transformers.Trainer(model, arguments, train_dataset=Texts(), eval_dataset=Texts())


@pytest.mark.parametrize("name", ["tied", "gpt2"])
@pytest.mark.runs_in("Trainer", "checkpoints of a compressed model", "low rank")
def test_checkpoints_of_trainer_hold_the_compressed_model(tmp_path, name):
    """A training that goes on from a checkpoint ends where one without an interruption ends."""
    start = compressed(name, targets=["re:.*"])
    whole = trainer_of(copy.deepcopy(start), tmp_path / "whole")
    whole.train()
    whole.model.eval()
    for step in (2, 4):
        loaded = read(tmp_path / "whole" / f"checkpoint-{step}")
        assert compressed_layers(loaded).keys() == compressed_layers(start).keys()
    require_same(tmp_path / "whole" / "checkpoint-4", whole.model)
    rest = trainer_of(copy.deepcopy(start), tmp_path / "whole")
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    torch.testing.assert_close(logits(rest.model.eval()), logits(whole.model))


@pytest.mark.runs_in("Trainer", "the best checkpoint, and training of a loaded model", "low rank")
def test_trainer_loads_the_best_model_and_trains_a_loaded_one(tmp_path):
    model = read(mpo.save(compressed("llama"), tmp_path / "small"))
    worst = {"metric_for_best_model": "loss", "greater_is_better": True}  # which is not the one in memory
    trainer = trainer_of(model, tmp_path / "out", load_best_model_at_end=True, **worst)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best.endswith("checkpoint-2")
    assert torch.equal(logits(trainer.model.eval()), logits(read(best)))
    trainer.save_model(str(tmp_path / "last"))
    require_same(tmp_path / "last", trainer.model)
