"""Published pages are what the committed records give, and not edited by hand."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mpochain.workflows.comparison_page import write_comparison
from mpochain.workflows.frontier_page import write_frontier
from studies.minilm import page as minilm
from studies.picogpt.study.page import write_page

ROOT = Path(__file__).parents[1]

LAYERS = runpy.run_path(str(ROOT / "studies/smollm2/layer_errors.py"))
KRONECKER = runpy.run_path(str(ROOT / "studies/kronecker/page.py"))
TESTED = runpy.run_path(str(ROOT / "tests/tested.py"))
WHERE = runpy.run_path(str(ROOT / "tests/where/page.py"))
QUANTISED = runpy.run_path(str(ROOT / "studies/smollm2/quantised_cores.py"))
LOADING = runpy.run_path(str(ROOT / "studies/loading/page.py"))
SCALING = runpy.run_path(str(ROOT / "studies/scaling/page.py"))
FAMILY = runpy.run_path(str(ROOT / "studies/family/page.py"))
EMBEDDINGS = runpy.run_path(str(ROOT / "studies/embeddings/page.py"))


@pytest.mark.parametrize(
    ("name", "records", "write"),
    [
        ("compression.md", "studies/smollm2/runs", write_comparison),
        ("study.md", "studies/picogpt/results", write_page),
        ("layers.md", "studies/smollm2/layers.json", LAYERS["write_page"]),
        ("kronecker.md", "studies/kronecker", KRONECKER["write_page"]),
        ("tested.md", "docs/results", TESTED["write_page"]),
        ("where.md", "docs/results", WHERE["write_page"]),
        ("quantised-cores.md", "studies/smollm2/quantised_cores.json", QUANTISED["write_page"]),
        ("loading.md", "studies/loading", LOADING["write_page"]),
        ("scaling.md", "studies/scaling", SCALING["write_page"]),
        ("family.md", "studies/family", FAMILY["write_page"]),
        ("embeddings.md", "studies/embeddings", EMBEDDINGS["write_page"]),
        ("frontier-minilm.md", "studies/minilm/frontier", minilm.write_page),
        (
            "frontier.md",
            "studies/smollm2/frontier",
            partial(write_frontier, title="SmolLM2-135M, channels in a random order: perplexity against size"),
        ),
        (
            "frontier-picogpt.md",
            "studies/picogpt/frontier",
            partial(write_frontier, title="PicoGPT: perplexity against size"),
        ),
    ],
)
def test_pages_are_those_of_their_records(
    tmp_path: Path, name: str, records: str, write: Callable[[Path, Path], object]
) -> None:
    write(ROOT / records, tmp_path / name)
    assert (tmp_path / name).read_text() == (ROOT / "docs" / "results" / name).read_text()
