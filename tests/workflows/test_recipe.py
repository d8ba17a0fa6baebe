"""Recipes: what is read, what is refused, and what a hostile one can do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpochain import MPOError
from mpochain.compression import METHODS
from mpochain.errors import ArgumentError, RecipeError
from mpochain.train import FinetuneConfig
from mpochain.workflows import Recipe, built_in_recipes, read_recipe
from mpochain.workflows.stage import Group


def write(folder, text):
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_recipe(tmp_path):
    (tmp_path / "model").mkdir()
    file = write(
        tmp_path,
        "model: model\nbudget: 60%\ntargets: ['re:.*mlp.*']\ncalibration: {text: a.txt, windows: 3}\n"
        "evaluation:\n  text: /b.txt\n  stride: 64\n",
    )
    recipe = read_recipe(file)
    # Paths go from the recipe's own folder.
    assert recipe.model == str(tmp_path / "model")
    assert recipe.calibration.text == tmp_path / "a.txt"
    assert str(recipe.evaluation.text) == "/b.txt"
    assert (recipe.budget, recipe.calibration.windows, recipe.calibration.window) == ("60%", 3, 512)
    assert (recipe.targets, recipe.evaluation.stride, recipe.method) == (("re:.*mlp.*",), 64, "interpolative")


def test_flags_override(tmp_path):
    file = write(tmp_path, "model: org/name\nbudget: 0.5\nseed: 3\ncalibration: {text: a.txt, windows: 3}\n")
    recipe = read_recipe(file, {"budget": 0.7, "method": None, "calibration": {"windows": 5, "text": None}})
    assert (recipe.model, recipe.budget, recipe.seed, recipe.method) == ("org/name", 0.7, 3, "interpolative")
    assert (recipe.calibration.windows, recipe.calibration.text) == (5, tmp_path / "a.txt")
    assert read_recipe(None, {"model": "m", "calibration": {"text": None}}).calibration is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected names with values"),
        ("- a", "expected names with values"),
        ("1: 2", "expected names with values"),
        ("budget: 0.5", "no model is named"),
        ("model: m\nbudgt: 0.5", r"budgt: there is no such field; did you mean 'budget'\?"),
        ("model: m\ncalibration: {text: a, widow: 3}", r"calibration\.widow"),
        ("model: m\ncalibration: {windows: 3}", r"calibration\.text is missing"),
        ("model: m\ncalibration: {text: 7}", r"calibration\.text: .*give a path"),
        ("model: m\ncalibration: {text: a, windows: 0}", r"calibration\.windows"),
        ("model: m\ncalibration: {text: a, windows: 2.0}", r"calibration\.windows"),
        ("model: m\ncalibration: a.txt", "calibration"),
        ("model: 7", "model: .*string"),
        ("model: m\nbudget: .nan", "budget"),
        ("model: m\nbudget: [1]", "budget"),
        ("model: m\ndtype: int8", "dtype"),
        ("model: m\nseed: -1", "seed"),
        ("model: m\nmethod: magic", r"method: there is no method 'magic'"),
        ("model: m\nmethod: kronecker\nsettings: {terms: 0}", r"settings: Kronecker: terms: .*got 0"),
        (
            "model: m\nmethod: kronecker\nsettings: {termz: 2}",
            r"settings: Kronecker: termz: there is no such setting; did you mean 'terms'\?",
        ),
        ("model: m\nsettings: {terms: 2}", r"settings: Interpolative: terms: there is no such setting; there are none"),
        ("model: m\nmethod: kronecker\nsettings: 3", "settings: Input should be fields with values"),
        ("model: m\nmethod: nowhere.to.be.found:Method", r"method: .*cannot import 'nowhere\.to\.be\.found'"),
        ("model: m\nmethod: 'os:system'", r"expected a subclass of mpochain\.compression\.Method"),
        ("model: m\nevaluation: {text: a, window: 8, stride: 9}", r"evaluation: stride=9 exceeds window=8"),
        ("model: m\nseed: yes", "seed"),
        ("model: m\nmodel: n", "'model' is given twice"),
        ("model: m\ncalibration: {text: a, text: b}", "'text' is given twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("model: !!python/object/apply:os.system ['true']", "not a recipe"),
        ("model: m\n\ttargets: []", "not a recipe"),
        ("model: \x00", "not a recipe"),
        ("model: " + "[" * 30 + "]" * 30, "nested too deeply"),
        ("{" * 5000, "nested too deeply"),
        ("? {a: b}\n: c", "not a recipe"),
        ("model: 2024-99-99", "not a recipe|model"),
        ("model: !!bool foo", "tags such as 'tag:yaml.org,2002:bool' are not used in recipes"),
        ("!!map [a]", "tags .* are not used"),
        ("model: !own a", "tags such as '!own' are not used"),
        ("seed: 0x_\nmodel: m", "not a recipe"),
        ('model: m\ncalibration: {text: "a\\0b"}', r"calibration\.text: a path has no NUL character"),
        ("model: m\ntargets: ['re:(']", r"targets\.0: 're:\(' is not a regular expression"),
        ("model: m\ntargets: ['re:a{99999999999}']", r"targets\.0: .* is not a regular expression"),
        ("model: m\ncomparison: {methods: [svd, svdd]}", r"comparison\.methods\.1: there is no method 'svdd'"),
        ("model: m\ncomparison: {methods: [svd], finetune: [tt_svd]}", "comparison: finetune: tt_svd: not among"),
        ("model: m\nfinetune: {text: a, training: {steps: yes}}", r"finetune\.training\.steps: .*got True"),
        ("model: m\nfinetune: {text: a, training: {learning_rate: 1e400}}", "finite number, got '1e400'"),
        ("model: m\nfinetune: {text: a, training: {steps: 1e3}}", r"finetune\.training\.steps: .*got '1e3'"),
    ],
)
def test_what_is_refused_names_the_place(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(MPOError, match=message) as raised:
        read_recipe(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_all_problems_are_listed_at_once(tmp_path):
    file = write(
        tmp_path,
        "budgt: 0.5\nmethod: svdd\ncalibration: {windows: 0}\n"
        "finetune: {txt: a, training: {steps: -1, temperatur: 2}}\n",
    )
    with pytest.raises(RecipeError) as raised:
        read_recipe(file, {"method": None})
    first, *lines = str(raised.value).split("\n")
    assert first == f"{file}: {len(lines)} problems"
    starts = [
        "no model is named",
        "method: there is no method 'svdd', did you mean 'svd'",
        "calibration.text is missing",
        "calibration.windows: Input should be greater than or equal to 1, got 0",
        "finetune.training.steps: Input should be greater than or equal to 1, got -1",
        "finetune.training.temperatur: there is no such field; did you mean 'temperature'?",
        "finetune.txt: there is no such field; did you mean 'text'?",
        "budgt: there is no such field; did you mean 'budget'?",
    ]
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(f"  {start}")
    assert lines[1].endswith("(on the command line --method)")


def test_sections_made_in_python_raise_the_same(tmp_path):
    with pytest.raises(RecipeError, match="Recipe: model: String should have at least 1 character"):
        Recipe(model="")
    with pytest.raises(ArgumentError, match=r"2 problems\n  steps: .*got 0\n  trainabel: .*'trainable'"):
        FinetuneConfig(steps=0, trainabel="all")
    with pytest.raises(ArgumentError, match="FinetuneConfig cannot be changed, got a new value for 'steps'"):
        FinetuneConfig().steps = 3
    with pytest.raises(ArgumentError, match="trainable: Input should be 'all', 'compressed' or 'auxiliary', or a list"):
        FinetuneConfig.model_validate({"trainable": 5})


def test_files_that_are_none(tmp_path):
    with pytest.raises(MPOError, match="cannot read the recipe"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MPOError, match="cannot read the recipe"):
        read_recipe(tmp_path / "bytes.yaml")
    with pytest.raises(MPOError, match="it is a folder, not a file"):
        read_recipe(tmp_path)
    with pytest.raises(MPOError, match="cannot read the recipe x*: it cannot be read: File name too long"):
        read_recipe(Path("x" * 300))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MPOError, match="no regular file"):
        read_recipe(tmp_path / "pipe")
    (tmp_path / "long.yaml").write_text("a: 1\n" * 300_000)
    with pytest.raises(MPOError, match="larger than 1 MiB"):
        read_recipe(tmp_path / "long.yaml")


def test_an_endless_recipe_is_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x]", *(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 60)), "targets: *a59"]
    with pytest.raises(MPOError, match="aliases are not used"):
        read_recipe(write(tmp_path, "\n".join(lines)))


def test_an_option_is_named_where_the_command_has_one():
    with pytest.raises(MPOError, match=r"finetune\.text is missing$"):
        read_recipe(None, {"model": "m", "finetune": {"window": 4}})
    with pytest.raises(MPOError, match=r"finetune\.text is missing \(on the command line --text\)$"):
        read_recipe(None, {"model": "m", "finetune": {"window": 4, "text": None}})


def test_former_names_are_read_with_a_warning(tmp_path, caplog):
    file = write(
        tmp_path,
        "model: m\nhealing: {text: a.txt, training: {steps: 7}}\ncomparison: {methods: [svd], heal: [svd]}\n",
    )
    recipe = read_recipe(file)
    assert recipe.finetune.training.steps == 7
    # Paths are relative to the recipe under either name.
    assert recipe.finetune.text == tmp_path / "a.txt"
    assert recipe.comparison.finetune == ("svd",)
    assert caplog.messages == [
        f"{file}: healing is now called finetune; rename it",
        f"{file}: comparison.heal is now called comparison.finetune; rename it",
    ]


def test_a_field_under_both_names_is_refused(tmp_path):
    file = write(tmp_path, "model: m\nhealing: {text: a.txt}\nfinetune: {text: b.txt}\n")
    with pytest.raises(MPOError, match="healing is the former name of finetune, but both are given"):
        read_recipe(file)


def test_recipes_of_the_library_have_no_former_names(caplog):
    for file in built_in_recipes().values():
        read_recipe(file, {"finetune": {"text": "a.txt"}})
    assert caplog.messages == []


def test_settings_of_the_command_line(tmp_path, caplog):
    file = write(tmp_path, "model: m\nmethod: kronecker\nsettings: {terms: 2, factors: [[2, 2]]}\n")
    recipe = read_recipe(file, {"method": None, "settings": {"terms": 3}})
    assert recipe.settings == {"terms": 3, "factors": [[2, 2]]}
    assert read_recipe(file, {"settings": {"terms": None}}).settings["terms"] is None
    assert read_recipe(file, {"settings": None}).settings["terms"] == 2
    assert caplog.messages == []
    # Settings of one method say nothing to another.
    recipe = read_recipe(file, {"method": "svd", "settings": None})
    assert (recipe.method, recipe.settings) == ("svd", {})
    assert caplog.messages == [f"{file}: its settings are not used, because they belong to method kronecker"]
    with pytest.raises(MPOError, match=r"settings: Kronecker: terms: .* \(on the command line --set\)"):
        read_recipe(file, {"settings": {"terms": 0}})


def test_the_seed_of_a_recipe_is_that_of_its_method():
    assert read_recipe(None, {"model": "m", "method": "kronecker", "seed": 5}).chosen_method().settings.seed == 5
    own = read_recipe(None, {"model": "m", "method": "kronecker", "seed": 5, "settings": {"seed": 6}})
    assert own.chosen_method().settings.seed == 6
    assert read_recipe(None, {"model": "m", "method": "svd", "seed": 5}).chosen_method() is METHODS["svd"]


@pytest.mark.parametrize(
    ("permuted", "calibrated", "name"),
    [
        (False, False, "kronecker"),
        (True, False, "permuted_kronecker"),
        (False, True, "calibrated_kronecker"),
        (True, True, "calibrated_permuted_kronecker"),
    ],
)
def test_factors_of_a_group_are_settings_of_a_method(permuted, calibrated, name):
    fields = {"factors": ((4, 2),), "terms": 3, "seconds": 2.0}
    former = Group(targets=("Linear",), permuted=permuted, calibrated=calibrated, **fields).named_method()
    current = Group(targets=("Linear",), method=name, settings=fields).named_method()
    assert former.name == current.name == name
    assert former.settings == current.settings


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({}, "give one of method, factors of Kronecker products, or units"),
        ({"method": "svd", "factors": ((2, 2),)}, "give one of method, factors"),
        ({"method": "svd"}, "the budget is missing"),
        ({"factors": ((2, 2),), "budget": 0.5}, "take no budget"),
        ({"method": "kronecker", "settings": {"terms": 1}, "budget": 0.5}, "take no budget"),
        ({"method": "kronecker", "settings": {"seconds": -1}, "budget": 0.5}, "Kronecker: seconds"),
        ({"factors": ((2, 2),), "settings": {"terms": 1}}, "settings needs method"),
        ({"method": "svd", "budget": 0.5, "terms": 1}, "terms needs factors"),
    ],
)
def test_groups_that_contradict_themselves(group, message):
    with pytest.raises(ValueError, match=message):
        Group(targets=("Linear",), **group)


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({"budget": "40MB"}, "auto"),
        ({"budget": "3.5 bits"}, "auto"),
        ({"budget": "3 bits", "method": "gptq", "settings": {"group": 64}}, "gptq"),
        ({"budget": 0.6}, "interpolative"),
        ({"budget": "5% error"}, "interpolative"),
        ({"speed": "70%"}, "interpolative"),
        ({"budget": "40MB", "speed": 0.7}, "auto"),
    ],
)
def test_the_method_follows_from_the_budget(fields, method):
    recipe = read_recipe(None, {"model": "m", **fields})
    assert recipe.chosen_method().name == recipe.method == method
    assert recipe.speed == fields.get("speed")
    again = Recipe.model_validate(recipe.model_dump(mode="json"))
    assert again.model_dump() == recipe.model_dump()


@pytest.mark.parametrize("speed", [0, 1.2, "fast", True, "0 %", [0.5]])
def test_speeds_that_are_none_name_their_option(speed):
    with pytest.raises(MPOError, match=r"speed: .*speed .* is (not a share|out of range)"):
        read_recipe(None, {"model": "m", "speed": speed})


def test_settings_of_the_default_method_are_those_of_its_budget():
    assert read_recipe(None, {"model": "m", "budget": "3 bits", "settings": {"bits": [4, 3]}}).settings == {
        "bits": [4, 3]
    }
    with pytest.raises(MPOError, match="bits"):
        read_recipe(None, {"model": "m", "budget": 0.5, "settings": {"bits": [4, 3]}})
