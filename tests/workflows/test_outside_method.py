"""A compression method of another package, named with its settings in a recipe."""

from __future__ import annotations

import json

import pytest
from texts import prose
from tiny import write_model

import mpochain as mpo
from mpochain import MPOError
from mpochain.errors import RecipeError
from mpochain.workflows import Recipe, compress_by, distill_by, read_recipe
from mpochain.workflows.report_page import write_report

MODULE = """
from pydantic import Field

import mpochain as mpo
from mpochain.compression import Built, Choices, Costs, Method, MethodSettings


class FixedRank(Method):
    \"\"\"The best approximation of one rank.\"\"\"

    settled = True

    class Settings(MethodSettings):
        rank: int = Field(ge=1, description="rank of every layer")

    def prepare(self, target, moments):
        (out, in_), rank = target.shape, self.settings.rank

        def build(choice):
            chain = mpo.decompose(target.weight, mpo.shapes.low_rank(out, in_, rank))
            return Built(mpo.MPOLinear.from_chains(chain, target.bias))

        return Choices.of(target, Costs.of(target, [rank * (out + in_)], [rank * (out + in_)]), None, build)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_model(tmp_path / "dense")
    (tmp_path / "valid.txt").write_text(prose(3000), encoding="utf-8")
    (tmp_path / "outside_methods.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def recipe_of(folder, text):
    (folder / "recipe.yaml").write_text(f"model: dense\n{text}", encoding="utf-8")
    return read_recipe(folder / "recipe.yaml")


def test_a_recipe_compresses_by_it(folder):
    recipe = recipe_of(folder, "method: outside_methods:FixedRank\nsettings: {rank: 2}\n")
    result = compress_by(recipe)
    assert result.report.method == "fixed_rank"
    assert {layer.parameters_after for layer in result.report.layers if "mlp" in layer.name} == {2 * (24 + 40)}
    (folder / "out").mkdir()
    write_report(folder / "out", result, "mpochain compress", recipe.model_dump(mode="json"))
    assert "method fixed_rank" in (folder / "out" / "report.html").read_text(encoding="utf-8")
    record = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    assert record["recipe"]["settings"] == {"rank": 2}
    assert record["compression"]["method"] == "fixed_rank"


def test_a_stage_compresses_by_it(folder):
    recipe = recipe_of(
        folder,
        "finetune: {text: valid.txt, window: 16, windows: 4, training: {steps: 1, batch_size: 2}}\n"
        "stages:\n"
        "  - name: mlps\n"
        "    groups: [{targets: ['re:.*up_proj'], method: 'outside_methods:FixedRank', settings: {rank: 3}}]\n",
    )
    distill_by(recipe, folder / "small")
    assert mpo.load(folder / "small").model.layers[0].mlp.up_proj.spec.bonds == (3,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [("{}", "settings: FixedRank: rank is missing"), ("{rank: 0}", "settings: FixedRank: rank: .*got 0")],
)
def test_its_settings_are_checked(folder, settings, message):
    with pytest.raises(MPOError, match=message):
        recipe_of(folder, f"method: outside_methods:FixedRank\nsettings: {settings}\n")


@pytest.mark.parametrize("method", ["nowhere.at.all:Thing", "mpochain.compression:Nothing"])
def test_a_class_that_is_not_there_is_an_error_of_the_method(method):
    with pytest.raises(RecipeError, match=r"Recipe: method: method '.*': (cannot import|.* has no 'Nothing')"):
        Recipe(model="gpt2", method=method)
