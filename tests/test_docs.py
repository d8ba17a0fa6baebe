"""What the documentation must name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mpochain
from mpochain.compression import METHODS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("method", METHODS)
def test_the_guide_lists_every_compression_method(method: str) -> None:
    table = (DOCS / "guides" / "language-models.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert any(f"`{method}`" in row for row in rows), f"guides/language-models.md lacks {method}"


@pytest.mark.parametrize("name", sorted(set(mpochain.__all__) - {"errors", "shapes"}))
def test_the_reference_lists_every_public_name(name: str) -> None:
    page = (DOCS / "api" / "mpochain.md").read_text(encoding="utf-8")
    assert re.search(rf"[.`~]{name}`", page), f"api/mpochain.md lacks {name}"


def test_records_of_decisions_are_numbered_without_gaps() -> None:
    records = sorted((DOCS / "decisions").glob("0*.md"))
    for number, record in enumerate(records, 1):
        title, _, about = record.read_text(encoding="utf-8").split("\n", 3)[:3]
        assert record.name.startswith(f"{number:04}-")
        assert title.startswith(f"# {number}. ")
        assert re.fullmatch(r"\*\d{4}-\d\d-\d\d\. Status: .+\*", about), f"{record.name}: date and status"
