"""Distillation in stages: parameters of the library's recipes, resumption, and errors before any work."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from texts import prose
from tiny import write_model

import mpochain as mpo
from mpochain import MPOError
from mpochain.compression import Target, select
from mpochain.language import load_language_model
from mpochain.nn.dense import dense_shape
from mpochain.workflows import built_in_recipes, distill_by, read_recipe
from mpochain.workflows.recipe import UnitsOfTokens
from mpochain.workflows.token_units import token_units

# Counts of GPT-2 small with its head tied.
COUNTS = {"tqcompressor-gpt2-small": 81_336_388, "kngpt2": 83_907_506}

STAGES = """
model: dense
finetune: {text: valid.txt, window: 16, windows: 12, training: {steps: 4, batch_size: 4, warmup_steps: 1}}
evaluation: {text: test.txt, window: 16, windows: 4}
stages:
  - name: words
    groups:
      - {targets: [model.embed_tokens], factors: [[1, 2], [1, 2]]}
  - name: mlps
    groups:
      - {targets: ['re:.*(up|gate)_proj'], factors: [[2, 2]], terms: 2}
      - {targets: ['re:.*down_proj'], method: svd, budget: 0.5}
    training: {steps: 3, learning_rate: 1.0e-3}
  - name: words-again
    training: {trainable: [model.embed_tokens], steps: 2}
"""


@pytest.fixture
def folder(tmp_path):
    write_model(tmp_path / "dense")
    (tmp_path / "valid.txt").write_text(prose(6000, seed=1), encoding="utf-8")
    (tmp_path / "test.txt").write_text(prose(3000, seed=2), encoding="utf-8")
    return tmp_path


def recipe_of(folder, text=STAGES):
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return read_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_the_parameters_of_gpt2_small(name):
    """Of the costs that the methods announce; the recipes run on a small model below."""
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    parameters = {id(parameter): parameter.numel() for parameter in model.parameters()}
    assert sum(parameters.values()) == 124_439_808
    recipe = read_recipe(built_in_recipes()[name], {"finetune": {"text": "none.txt"}})
    count = sum(parameters.values())
    for group in (group for stage in recipe.stages for group in stage.groups):
        method = group.named_method()
        assert method.settled
        layers = select(model, group.targets, embeddings=method.embeddings, linear=method.linear)
        for layer_name, layer in layers.items():
            shape = dense_shape(layer) or tuple(layer.weight.shape)
            target = Target(layer_name, layer, torch.empty(shape, device="meta"), None)
            count += int(method.prepare(target, None).costs.parameters[0]) - target.parameters
    assert count == COUNTS[name]


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_the_recipes_run_at_a_small_size(name, folder, caplog):
    """A small GPT-2 with the names and blocks of the recipes."""
    settings = transformers.GPT2Config(
        vocab_size=60, n_positions=16, n_embd=16, n_layer=12, n_head=2, bos_token_id=0, eos_token_id=0
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "dense")
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(settings).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    training = {"steps": 2, "batch_size": 4, "accumulate": 2, "warmup_steps": 1}
    recipe = read_recipe(
        built_in_recipes()[name],
        {
            "model": str(folder / "gpt2"),
            "finetune": {"text": str(folder / "valid.txt"), "windows": 8, "training": training},
        },
        window=16,
    )
    with caplog.at_level("INFO", "mpochain.workflows.staging"):
        outcome = distill_by(recipe, folder / "small")
    # One order for each MLP, between its two layers.
    absorbed = any(line.endswith("absorbed 6 orders of features") for line in caplog.messages)
    assert absorbed is (name == "tqcompressor-gpt2-small")
    assert outcome.parameters[1] < outcome.parameters[0]
    loaded = mpo.load(folder / "small")
    assert loaded.lm_head.weight.shape == (60, 16)
    assert sum(parameter.numel() for parameter in loaded.parameters()) == outcome.parameters[1]


def test_stages_one_after_the_other(folder):
    recipe = recipe_of(folder)
    outcome = distill_by(recipe, folder / "small", teacher_cache=folder / "cache")
    assert [stage["name"] for stage in outcome.stages] == ["words", "mlps", "words-again"]
    assert [len(stage["layers"]) for stage in outcome.stages] == [1, 6, 0]
    assert [stage["training"]["steps"] for stage in outcome.stages] == [4, 3, 2]
    assert all(stage["after"]["perplexity"] > 1 for stage in outcome.stages)
    assert outcome.dense["perplexity"] > 1
    assert outcome.parameters[0] > outcome.parameters[1]
    assert not (folder / "small" / "stages").exists()
    model = mpo.load(folder / "small")
    assert model.lm_head.weight.shape == (60, 24)
    json.dumps(outcome.as_dict())
    # The same without a cache of the teacher's logits, but for the rounding of the cache.
    other = distill_by(recipe, folder / "other")
    losses, same = (run.stages[0]["training"]["losses"] for run in (outcome, other))
    assert losses == pytest.approx(same, rel=1e-2)
    assert losses != same


def test_only_what_is_named_learns(folder):
    recipe = recipe_of(folder)
    distill_by(recipe.model_copy(update={"stages": recipe.stages[:2]}), folder / "two")
    distill_by(recipe, folder / "three")
    two, three = (mpo.load(folder / name).state_dict() for name in ("two", "three"))
    changed = {name for name in two if not torch.equal(two[name], three[name])}
    assert changed
    assert all(name.startswith(("model.embed_tokens.", "lm_head.")) for name in changed)


@pytest.mark.parametrize("stop", ["compress", "finetune", "save"])
def test_an_interrupted_run_ends_with_the_same_model(folder, monkeypatch, stop):
    recipe = recipe_of(folder)
    uninterrupted = distill_by(recipe, folder / "uninterrupted")
    from mpochain.workflows import groups, staged_work, staging

    module, name = {
        "compress": (groups, "compress"),
        "finetune": (staging, "finetune"),
        "save": (staged_work, "save_language_model"),
    }[stop]
    real, calls = getattr(module, name), []

    def failing(*arguments, **named):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, failing)
    with pytest.raises(KeyboardInterrupt):
        distill_by(recipe, folder / "broken")
    again = distill_by(recipe, folder / "broken")
    assert again.parameters == uninterrupted.parameters
    for mine, theirs in zip(again.stages, uninterrupted.stages, strict=True):
        assert mine["training"]["losses"] == theirs["training"]["losses"]
        assert mine["after"]["loss"] == theirs["after"]["loss"]
    one, other = (mpo.load(folder / name).state_dict() for name in ("broken", "uninterrupted"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_work_of_another_recipe_is_not_resumed(folder, monkeypatch):
    from mpochain.workflows import staging

    recipe = recipe_of(folder)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(staging, "finetune", stopped)
    with pytest.raises(KeyboardInterrupt):
        distill_by(recipe, folder / "small")
    with pytest.raises(MPOError, match="belongs to another recipe: seed was 0 and is now 7"):
        distill_by(recipe.model_copy(update={"seed": 7}), folder / "small")
    changed = recipe_of(folder, STAGES.replace("factors: [[1, 2], [1, 2]]", "factors: [[1, 2]]"))
    with pytest.raises(MPOError, match="its stage words was started with other settings"):
        distill_by(changed, folder / "small")
    # The stages' perplexities would be those of different texts.
    evaluated = recipe_of(folder, STAGES.replace("windows: 4}", "windows: 3}"))
    with pytest.raises(MPOError, match="belongs to another recipe: evaluation was"):
        distill_by(evaluated, folder / "small")
    # A stage that was not begun may change.
    later = recipe_of(folder, STAGES.replace("steps: 3,", "steps: 5,"))
    with pytest.raises(KeyboardInterrupt):
        distill_by(later, folder / "small")
    valid = (folder / "valid.txt").read_text()
    (folder / "valid.txt").write_text(valid + " the")
    with pytest.raises(MPOError, match=r"sha256 of valid\.txt was"):
        distill_by(recipe, folder / "small")
    (folder / "valid.txt").write_text(valid)
    (folder / "small" / "stages" / "found.json").write_text("{")
    with pytest.raises(MPOError, match="is damaged"):
        distill_by(recipe, folder / "small")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("model.embed_tokens]", "model.embed]"), "stage words: .*'model.embed' matches no layer"),
        (
            ("factors: [[1, 2], [1, 2]]", "factors: [[1, 5]]"),
            r"stage words: model\.embed_tokens: a factor of 1x5 does not divide",
        ),
        (("(up|gate)_proj", "(up|gate|down)_proj"), "down_proj is compressed in the stages mlps and mlps"),
        (("svd, budget", "svd_llm, budget"), "stage mlps: method svd_llm needs calibration data"),
        (("svd, budget", "svdd, budget"), r"stages\.1\.groups\.1\.method: there is no method 'svdd'"),
        (("budget: 0.5", "permuted: true"), "permuted needs factors"),
        (("steps: 3, ", "stepps: 3, "), r"stages\.mlps\.training\.stepps"),
        (
            ("trainable: [model.embed_tokens]", "trainable: [model.embed]"),
            "stage words-again: trainable: 'model.embed'",
        ),
        (("steps: 3, ", "batch_size: 13, "), "stage mlps: batch_size=13 exceeds the 12 windows"),
        (("steps: 3, ", "hidden: 1.0, hidden_layers: [model.lay], "), "stage mlps: .* has no module 'model.lay'"),
        (
            ("method: svd, budget: 0.5", "method: svd, budget: 0.5, terms: 3"),
            "terms needs factors, which this group does not have",
        ),
        (("model: dense", "model: dense\nignore: ['re:.*']"), "ignore is not used with stages"),
        (("'re:.*(up|gate)_proj'", "lm_head"), "lm_head is compressed in the stages words and mlps"),
        (
            ("window: 16, windows: 12", "window: 80, windows: 5"),
            "finetune: a window of 80 tokens is longer",
        ),
        (("name: words-again", "name: words"), "two have the name 'words'"),
        (("name: words-again", "name: ../words"), r"stages\.2\.name"),
        (
            ("windows: 12,", "windows: 12, teacher: other,"),
            "the teacher has a vocabulary of 50 and the model one of 60",
        ),
    ],
)
def test_errors_come_before_any_work(folder, change, message):
    settings = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    transformers.GPT2LMHeadModel(settings).save_pretrained(folder / "other")
    transformers.AutoTokenizer.from_pretrained(folder / "dense").save_pretrained(folder / "other")
    assert change[0] in STAGES
    with pytest.raises(MPOError, match=message):
        distill_by(recipe_of(folder, STAGES.replace(*change)), folder / "small")
    assert not list(folder.glob("small/stages/*.smaller"))


def test_the_dense_model_is_not_written_over(folder):
    before = (folder / "dense" / "config.json").read_text()
    with pytest.raises(MPOError, match="is the folder of the dense model"):
        distill_by(recipe_of(folder), folder / "dense")
    assert (folder / "dense" / "config.json").read_text() == before


def test_a_cache_that_a_stage_cannot_use(folder):
    recipe = recipe_of(folder, STAGES.replace("steps: 3, ", "attention: 1.0, "))
    with pytest.raises(MPOError, match="stage mlps: teacher_cache="):
        distill_by(recipe, folder / "small", teacher_cache=folder / "cache")


def test_what_is_missing(folder):
    with pytest.raises(MPOError, match="stages are missing"):
        distill_by(recipe_of(folder, "model: dense\nfinetune: {text: valid.txt}\n"), folder / "small")
    without = recipe_of(folder, STAGES).model_copy(update={"finetune": None})
    with pytest.raises(MPOError, match="the text to learn from is missing"):
        distill_by(without, folder / "small")


UNITS = """
model: dense
finetune: {text: valid.txt, window: 16, windows: 12, training: {steps: 4, batch_size: 4, warmup_steps: 1}}
evaluation: {text: test.txt, window: 16, windows: 4}
stages:
  - name: words
    groups:
      - targets: [model.embed_tokens]
        budget: 0.8
        units: {listing: units.tsv, wordnet: lexicon, pieces: 30}
        coefficients: true
    training: {outputs: 0, hidden: 1.0, hidden_layers: [model.embed_tokens, model.layers.0]}
  - name: outputs
    training: {distillation: 0.5, trainable: [model.embed_tokens]}
"""


@pytest.fixture
def lexicon(folder):
    """A listing of two tokens, and a database that knows one word."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder / "dense").convert_ids_to_tokens([20, 21])
    (folder / "units.tsv").write_text(f"{tokens[0]}\tone two\n{tokens[1]}\tone\n", encoding="utf-8")
    (folder / "lexicon").mkdir()
    for part in ("noun", "verb", "adj", "adv"):
        for kind in ("index", "data"):
            (folder / "lexicon" / f"{kind}.{part}").write_text("")
    (folder / "lexicon" / "index.noun").write_text("the n 1 0 1 0 00000001\n")
    (folder / "lexicon" / "data.noun").write_text("00000001 03 n 01 the 0 000 | a word\n")
    return folder


def test_embeddings_of_units_learn_hidden_states_first(lexicon):
    out = lexicon / "small"
    distill_by(recipe_of(lexicon, UNITS), out)
    model = load_language_model(str(out)).model
    words, head = model.model.embed_tokens, model.lm_head
    assert isinstance(words, mpo.EntangledEmbedding)
    assert words.coefficients.shape == (words.num_embeddings, words.ranks)
    assert head.table.table_0 is words.table_0
    assert words.index[20, 0] == words.index[21, 0] != words.index[20, 1]
    record = json.loads((out / "distillation.json").read_text())
    assert [stage["name"] for stage in record["stages"]] == ["words", "outputs"]
    (layer,) = record["stages"][0]["layers"]
    assert layer["bytes_after"] <= 0.8 * layer["bytes_before"]


def test_rows_without_a_token_are_units_of_their_own(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "dense")
    count = len(tokenizer)
    padded = token_units(tokenizer, count + 5, UnitsOfTokens(pieces=40))
    known = token_units(tokenizer, count, UnitsOfTokens(pieces=40))
    assert padded.units_of(f"<row {count + 4}>") == (f"=<row {count + 4}>", "")
    assert padded.unsplit == known.unsplit + 5
    assert (padded.index[:count] == known.index).all(), "pieces are of tokens alone"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("listing: units.tsv", "listing: none.tsv"), "stage words: .*none.tsv cannot be read"),
        (("wordnet: lexicon", "wordnet: ."), "stage words: .*index.noun cannot be read"),
        (("[model.embed_tokens]\n        budget", "[model.norm]\n        budget"), "'model.norm' is a .*RMSNorm"),
        (("budget: 0.8", "budget: 0.8\n        method: svd"), "give one of method, factors"),
        (("        budget: 0.8\n", ""), "the budget is missing"),
        (("{listing: units.tsv, wordnet: lexicon, pieces: 30}", "{least: 2}"), "give listing, wordnet or pieces"),
        (("pieces: 30", "pieces: 30, places: 1"), r"units\.places"),
        (("budget: 0.8", "budget: 0.05"), "cannot be made as small as 5.0% of its parameters"),
        (("budget: 0.8", "budget: 5% error"), "errors of model.embed_tokens are unknown before it is built"),
        (("coefficients: true", "seconds: 2"), "seconds needs factors"),
    ],
)
def test_errors_of_units_come_before_any_work(lexicon, change, message):
    assert change[0] in UNITS
    with pytest.raises(MPOError, match=message):
        distill_by(recipe_of(lexicon, UNITS.replace(*change)), lexicon / "small")
    assert not list(lexicon.glob("small/stages/*.smaller"))
