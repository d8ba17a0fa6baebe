"""A compression is saved before it is measured, and an interrupted one goes on to the same result."""

from __future__ import annotations

import json
import sys
from hashlib import sha256

import pytest
from texts import prose
from tiny import write_model

from mpochain.cli import main
from mpochain.cli.outcome import outcome
from mpochain.errors import MPOError, RecipeError
from mpochain.workflows import Recipe, compress_by, compressing, measured, report_page, timing
from mpochain.workflows.sections import Evaluation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compressing")
    write_model(folder / "dense")
    for name, seed in (("valid.txt", 1), ("test.txt", 2), ("plays.txt", 3)):
        (folder / name).write_text(prose(3000, seed=seed), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def recipe(folder):
    return Recipe(
        model=str(folder / "dense"),
        budget=0.7,
        calibration={"text": folder / "valid.txt", "window": 16, "windows": 3},
        evaluation={"text": folder / "test.txt", "window": 16, "windows": 3, "also": [folder / "plays.txt"]},
        prompts=("the king",),
    )


@pytest.fixture(scope="module", autouse=True)
def plain_figures():
    """Figures without content, as drawing them takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("bars", "draw"):
            patch.setattr(report_page, name, lambda file, *_, **__: file.write_bytes(b""))
        yield


@pytest.fixture(scope="module")
def whole(recipe, folder):
    return compress_by(recipe, folder / "whole")


def weights(out):
    (file,) = out.glob("model-*.safetensors")
    return sha256(file.read_bytes()).hexdigest()


def raising(error):
    def stop(*_, **__):
        raise error

    return stop


def test_a_model_that_cannot_be_timed_is_saved_with_the_reason(monkeypatch, recipe, tmp_path):
    monkeypatch.setattr(timing, "compare_speed", raising(AttributeError("no cache")))
    result = compress_by(recipe, tmp_path / "out", timed=True)
    assert result.speed is None
    assert result.problems == {"speed": "AttributeError: no cache"}
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["problems"] == {"speed": "AttributeError: no cache"}
    assert record["perplexity"]["after"]["windows"] == 3
    assert record["file_bytes"]["after"] == sum(
        file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")
    )
    assert "AttributeError: no cache" in (tmp_path / "out" / "report.html").read_text()


def test_a_further_text_is_measured_on_both_models(whole, folder, recipe):
    (before, after) = whole.also["plays.txt"]
    record = json.loads((folder / "whole" / "report.json").read_text())["perplexity"]
    assert record["also"] == {"plays.txt": {"before": before.as_dict(), "after": after.as_dict()}}
    alone = recipe.model_copy(update={"evaluation": Evaluation(text=folder / "plays.txt", window=16, windows=3)})
    other = compress_by(alone)
    assert (other.before.loss, other.after.loss) == (before.loss, after.loss)
    assert other.before.loss != whole.before.loss
    shown = {"report.html": f"{after.perplexity:.2f}", "README.md": f"{after.perplexity:.4g} compressed"}
    for file, number in shown.items():
        text = (folder / "whole" / file).read_text()
        assert "plays.txt" in text
        assert number in text
    (row,) = [line.split() for line in outcome(whole, 100).splitlines() if "plays.txt" in line]
    ratio = after.perplexity / before.perplexity
    assert row == ["on", "plays.txt", *(f"{value:.2f}" for value in (before.perplexity, after.perplexity, ratio))]


@pytest.mark.parametrize("error", [MPOError("NaN"), RuntimeError("NaN")])
def test_a_model_that_cannot_be_evaluated_is_saved_and_the_command_fails(monkeypatch, recipe, tmp_path, error):
    measure = measured.Measured.perplexity

    def perplexity(self, model):
        return measure(self, model) if self._label == "dense" else raising(error)()

    monkeypatch.setattr(measured.Measured, "perplexity", perplexity)
    with pytest.raises(MPOError, match=r"the compressed model is saved in .*out, but its evaluation failed: .*NaN"):
        compress_by(recipe, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "NaN" in record["problems"]["perplexity"]
    assert record["texts"], "the rest is measured nevertheless"
    assert set(record["perplexity"]["also"]) == {"plays.txt"}
    weights(tmp_path / "out")


@pytest.mark.parametrize(
    ("module", "place", "label"),
    [
        *[(measured, "generate", "dense"), (compressing, "save_result", None)],
        *[(measured, "generate", "compressed"), (timing, "compare_speed", None)],
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_result(
    monkeypatch, recipe, whole, folder, tmp_path, module, place, label
):
    original, calls = getattr(module, place), []

    def interrupted(*arguments, **named):
        calls.append(place)
        if len(calls) == (2 if label == "compressed" else 1):
            raise KeyboardInterrupt
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress_by(recipe, tmp_path / "out", timed=place == "compare_speed")
    saved = place == "compare_speed" or label == "compressed"
    assert (tmp_path / "out" / "config.json").exists() is saved
    evaluated, evaluate = [], measured.Inputs.perplexity

    def perplexity(self, model, label, counters):
        evaluated.append(label)
        return evaluate(self, model, label, counters)

    monkeypatch.setattr(measured.Inputs, "perplexity", perplexity)
    again = compress_by(recipe, tmp_path / "out")
    assert "dense" not in evaluated, "the evaluation of the dense model was kept"
    assert saved is ("compressed" not in evaluated)
    assert weights(tmp_path / "out") == weights(folder / "whole")
    assert (again.before.loss, again.after.loss, again.texts) == (
        *(whole.before.loss, whole.after.loss),
        whole.texts,
    )
    losses = [[perplexity.loss for perplexity in result.also["plays.txt"]] for result in (again, whole)]
    assert losses[0] == losses[1]
    assert sorted(file.suffix or file.name for file in (tmp_path / "out").iterdir() if file.name[0] != ".") == [
        *(".html", *[".json"] * 5, ".md", ".safetensors"),
    ]


def test_the_model_card_has_what_was_measured_and_the_command(recipe, tmp_path):
    result = compress_by(recipe, tmp_path / "out", command="mpochain compress dense")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{result.before.perplexity:.4g} dense, {result.after.perplexity:.4g} compressed" in card
    assert "mpochain compress dense" in card
    assert 'base_model: "dense"' in card
    assert "mpochain.compress(model, 0.7, method='interpolative')" in card


def test_another_run_is_refused_unless_it_may_be_replaced(monkeypatch, recipe, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(compressing, "save_result", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            compress_by(recipe, tmp_path / "out")
        patch.setattr(compressing, "compress", raising(MPOError("no")))
        with pytest.raises(MPOError):
            compress_by(recipe.model_copy(update={"evaluation": None, "prompts": ()}), tmp_path / "failed")
        assert not (tmp_path / "failed").exists(), "nothing is left of a run that finished nothing"
    other = recipe.model_copy(update={"budget": 0.6, "evaluation": None, "prompts": ()})
    with pytest.raises(MPOError, match=r"unfinished state of another compression: budget was 0\.7 and is now 0\.6"):
        compress_by(other, tmp_path / "out")
    expected = compress_by(other, tmp_path / "whole")
    assert expected.report.budget == compress_by(other, tmp_path / "out", overwrite=True).report.budget == 0.6
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--target re:.*none", "--target"),
        ("--budget 0.0001", "budget 0.0001 is out of reach"),
        ("--method kronecker --set terms=1 --budget 0.5", "give no --budget, or leave out the setting that decides"),
        ("--method svd --sequential", "--sequential needs calibration data"),
        ("--ignore re:.*", "see --target and --ignore"),
        ("--stages 0.4", "--stages: 0.5 is not below 0.4"),
        ("--stages 0.9,nine", "(on the command line --stages)"),
    ],
)
def test_what_is_impossible_is_refused_before_anything_is_evaluated(
    monkeypatch, folder, tmp_path, capsys, arguments, message
):
    monkeypatch.setattr(measured.Inputs, "perplexity", lambda *_: pytest.fail("evaluated"))
    texts = ["--calibration", folder / "valid.txt", "--evaluate", folder / "test.txt", "--window", 16]
    budget = [] if "--budget" in arguments else ["--budget", 0.5]
    command = ["mpochain", "compress", folder / "dense", *budget, *texts, "--out", tmp_path / "out", *arguments.split()]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_blocks_are_refined_by_a_recipe(recipe, tmp_path):
    refined = Recipe.model_validate({**recipe.model_dump(exclude={"evaluation", "prompts"}), "refine": {"epochs": 1}})
    result = compress_by(refined, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["recipe"]["refine"]["epochs"] == 1
    assert [block["name"] for block in record["compression"]["refined"]] == ["model.layers.0", "model.layers.1"]
    assert "blocks in" in result.report.summary()


def test_stages_and_sequential_correction_by_a_recipe(recipe, tmp_path):
    fields = {"budget": 0.6, "method": "svd_llm", "stage_budgets": [0.8], "sequential": True}
    staged = Recipe.model_validate({**recipe.model_dump(exclude={"evaluation", "prompts"}), **fields})
    compress_by(staged, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "report.json").read_text())["compression"]
    assert (record["stages"], record["sequential"]) == ([0.8], True)
    corrected = [layer["name"].split(".")[-1] for layer in record["layers"] if layer["mixing"] is not None]
    assert corrected == ["o_proj", "down_proj"] * 2
    with pytest.raises(RecipeError, match="give budgets of earlier stages of a compression as stage_budgets"):
        Recipe.model_validate({**recipe.model_dump(), "stages": [0.8]})


@pytest.mark.parametrize("refine", [{"epochs": 0}, {"epoch": 3}, 3])
def test_refinements_that_make_no_sense_are_refused(recipe, refine):
    with pytest.raises(RecipeError, match="refine"):
        Recipe.model_validate({**recipe.model_dump(), "refine": refine})
