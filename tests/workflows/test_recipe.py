"""Recipes: what is read, what is refused, and what a hostile one can do."""

from __future__ import annotations

import pytest

from mpochain import MPOError
from mpochain.workflows import read_recipe


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
        ("model: m\nbudgt: 0.5", r"budgt: .*not a field of recipes"),
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
        ("model: m\nseed: yes", "seed"),
        ("model: m\nmodel: n", "'model' is there twice"),
        ("model: m\ncalibration: {text: a, text: b}", "'text' is there twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("model: !!python/object/apply:os.system ['true']", "no recipe"),
        ("model: m\n\ttargets: []", "no recipe"),
        ("model: \x00", "no recipe"),
        ("model: " + "[" * 30 + "]" * 30, "nested too deeply"),
        ("{" * 5000, "nested too deeply"),
        ("? {a: b}\n: c", "no recipe"),
        ("model: 2024-99-99", "no recipe|model"),
    ],
)
def test_what_is_refused_names_the_place(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(MPOError, match=message) as raised:
        read_recipe(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(MPOError, match="cannot read the recipe"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MPOError, match="cannot read the recipe"):
        read_recipe(tmp_path / "bytes.yaml")
    (tmp_path / "long.yaml").write_text("a: 1\n" * 300_000)
    with pytest.raises(MPOError, match="larger than 1 MiB"):
        read_recipe(tmp_path / "long.yaml")


def test_an_endless_recipe_is_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x]", *(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 60)), "targets: *a59"]
    with pytest.raises(MPOError, match="aliases are not used"):
        read_recipe(write(tmp_path, "\n".join(lines)))


def test_an_option_is_named_where_the_command_has_one():
    with pytest.raises(MPOError, match=r"healing\.text is missing$"):
        read_recipe(None, {"model": "m", "healing": {"window": 4}})
    with pytest.raises(MPOError, match=r"healing\.text is missing \(on the command line --text\)$"):
        read_recipe(None, {"model": "m", "healing": {"window": 4, "text": None}})
