"""Prompts of a recipe: both models generate, the report shows both texts, and progress names every step."""

from __future__ import annotations

import pytest
from texts import prose
from tiny import write_model

from mpochain.language import generate, load_language_model
from mpochain.workflows import Recipe, compress_by
from mpochain.workflows.report_page import write_report


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    write_model(folder / "dense")
    (folder / "text.txt").write_text(prose(2000, seed=3), encoding="utf-8")
    return Recipe(
        model=str(folder / "dense"),
        budget=0.7,
        calibration={"text": folder / "text.txt", "window": 16, "windows": 3},
        prompts=("the king <loves>", "my heart"),
    )


def test_both_models_generate(recipe, tmp_path):
    steps = {}

    def counters(label):
        return lambda done, total: steps.update({label: (done, total)})

    result = compress_by(recipe, counters=counters)
    dense = load_language_model(recipe.model)
    assert [text.prompt for text in result.texts] == list(recipe.prompts)
    assert [text.dense for text in result.texts] == generate(dense.model, dense.tokenizer, recipe.prompts)
    compressed = generate(result.language.model, result.language.tokenizer, recipe.prompts)
    assert [text.compressed for text in result.texts] == compressed
    assert steps["calibration, pass 1"] == (3, 3)
    assert steps["text, dense"] == steps["text, compressed"] == (2, 2)
    assert next(iter(steps)) == "text, dense"
    assert result.model_bytes[1] < result.model_bytes[0]
    _, page = write_report(tmp_path, result, "mpochain compress", recipe.model_dump(mode="json"))
    html = page.read_text(encoding="utf-8")
    assert "<h3>the king &lt;loves&gt;</h3>" in html
    assert f"<li>Compressed: {result.texts[1].compressed}</li>" in html


def test_without_prompts_or_work_no_text_is_generated(recipe):
    assert compress_by(recipe, dry_run=True).texts == ()
    assert compress_by(recipe.model_copy(update={"prompts": ()})).texts == ()
