"""Records, files and folders of runs from before healing was called finetuning."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from mpochain.workflows import read_recipe
from mpochain.workflows.comparison_records import read_runs
from mpochain.workflows.former_names import current_record, existing_file, existing_folder
from mpochain.workflows.json_file import read_sealed_json, write_sealed_json
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.staged_work import StagedWork

PUBLISHED = Path(__file__).parents[2] / "studies" / "smollm2" / "runs"


def test_published_records_are_read_under_the_names_of_today():
    records = read_runs(PUBLISHED)
    finetuned = [name for name in records if name.endswith("-finetuned")]
    assert len(finetuned) == 6
    assert not [name for name in records if "heal" in name]
    for name in finetuned:
        assert records[name]["setting"]["finetune"]["training"]["steps"] == 60
        assert "healing" not in records[name]["setting"]


def test_a_record_of_today_is_read_as_it_is():
    record = {"name": "svd-0.5-finetuned", "setting": {"finetune": {"window": 4}}, "seconds": 1.0}
    assert current_record(record) == record


@pytest.mark.parametrize(
    ("current", "former"),
    [
        ("finetune.state", "healing.state"),
        ("finetune.json", "healing.json"),
        ("svd-0.5-finetuned.json", "svd-0.5-healed.json"),
    ],
)
def test_the_file_of_a_run(tmp_path, current, former):
    assert existing_file(tmp_path, current) == tmp_path / current
    (tmp_path / former).write_text("{}")
    assert existing_file(tmp_path, current) == tmp_path / former
    (tmp_path / current).write_text("{}")
    assert existing_file(tmp_path, current) == tmp_path / current


def test_the_folder_of_a_run(tmp_path):
    assert existing_folder(tmp_path, "svd-0.5-finetuned") == tmp_path / "svd-0.5-finetuned"
    (tmp_path / "svd-0.5-healed").mkdir()
    assert existing_folder(tmp_path, "svd-0.5-finetuned") == tmp_path / "svd-0.5-healed"
    assert existing_folder(tmp_path, "svd-0.5") == tmp_path / "svd-0.5"


def test_stages_begun_by_an_earlier_version_are_resumed(tmp_path):
    """Its state names the section healing, and does not know settings."""
    (tmp_path / "a.txt").write_text("text")
    stage = {"name": "first", "groups": [{"targets": ["Linear"], "method": "svd", "budget": 0.5}]}
    recipe = Recipe.model_validate({"model": "m", "finetune": {"text": tmp_path / "a.txt"}, "stages": [stage]})
    work = StagedWork(tmp_path / "work", recipe)
    work.begin(recipe.stages[0])
    work.remember("dense", lambda: 3.0)
    file = tmp_path / "work" / "found.json"
    state = read_sealed_json(file)
    state["of"]["healing"] = state["of"].pop("finetune")
    del state["begun"][0]["stage"]["groups"][0]["settings"]
    write_sealed_json(file, state)
    assert StagedWork(tmp_path / "work", recipe).recall("dense") == 3.0


def test_the_package_under_its_former_name():
    with pytest.warns(DeprecationWarning, match=r"mpochain\.jobs is now mpochain\.workflows"):
        jobs = importlib.import_module("mpochain.jobs")
    assert jobs.read_recipe is read_recipe
    assert importlib.import_module("mpochain.jobs.texts").require_unseen
