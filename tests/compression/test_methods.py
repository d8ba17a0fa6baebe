"""Table of the methods: names, settings and their descriptions, and every place that names them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn

import mpochain as mpo
from mpochain.compression import METHODS, Entangled, Kronecker, LowRank, TokenTrain


def test_every_method_reports_under_the_name_of_the_table():
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (Kronecker(permuted=True), "permuted_kronecker"),
        (Kronecker(permuted=True, calibrated=True, terms=2), "calibrated_permuted_kronecker"),
        (Kronecker(Kronecker.Settings(permuted=False, terms=1)), "kronecker"),
        (LowRank(), "svd_llm"),
        (Entangled(units="own", order=3), "word2ket"),
        (Entangled(units=[[0, 1], [1, 0]]), "entangled"),
        (TokenTrain(sites=2), "token_train"),
    ],
)
def test_settings_decide_the_name(method, name):
    assert method.name == name


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_is_described_and_has_a_default(name):
    for field, description in METHODS[name].Settings.model_fields.items():
        assert description.description, f"{name}.{field} has no description"
        assert not description.is_required(), f"{name}.{field} has no default"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Kronecker(terms=0), "Kronecker: terms: Input should be greater than or equal to 1, got 0"),
        (lambda: Kronecker(terms=True), "Kronecker: terms"),
        (lambda: Kronecker(factors=[]), "Kronecker: factors"),
        (lambda: Kronecker(factors=[(0, 2)], terms=1), "Kronecker: factors.0.0"),
        (lambda: Kronecker(seconds=0), "Kronecker: seconds"),
        (lambda: Entangled(units="letters"), "give 'digits', 'own' or an index"),
        (lambda: Entangled(ranks=0), "Entangled: ranks"),
        (lambda: LowRank(rank=3), "LowRank: rank: there is no such setting; there is only weighted"),
    ],
)
def test_settings_that_cannot_be(wrong, message):
    with pytest.raises(mpo.errors.ArgumentError, match=message):
        wrong()


def test_the_documentation_names_every_method():
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *(root / "docs").glob("**/*.md")]
    # Results name what they measured, which is no documentation.
    words = {
        word
        for page in pages
        if "results" not in page.relative_to(root).parts
        for word in re.findall(r"\w+", page.read_text(encoding="utf-8"))
    }
    assert set(METHODS) <= words


def test_a_kronecker_layer_is_reported_under_the_full_name():
    model = nn.Sequential(nn.Linear(8, 8))
    report = mpo.compress(model, None, method=Kronecker(permuted=True, factors=[(2, 2)], terms=1), dry_run=True)
    assert report.method == "permuted_kronecker"
