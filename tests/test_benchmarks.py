"""Recording of benchmark results, removal of disturbed cells, and the published page."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import results
from cells import skip_if_finished
from disturbed import disturbed
from render import GROUPS, summary_page

ROOT = Path(__file__).parent.parent


def run(folder, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "benchmarks/bench_planning.py", "-k", "2", "--benchmark-enable"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "MPOCHAIN_BENCH_RESULTS": str(folder), "MPOCHAIN_BENCH_GRID": "tiny", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_only_a_recording_run_writes(tmp_path):
    assert "1 passed" in run(tmp_path)
    assert not list(tmp_path.iterdir()), "plain pytest-benchmark leaves nothing behind"
    assert "1 passed" in run(tmp_path, MPOCHAIN_BENCH_RECORD="1")
    (file,) = tmp_path.iterdir()
    (line,) = file.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["cell"] == "2 sites"


def test_only_a_recording_run_skips_what_was_measured_here(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "load", functools.cache(results.load.__wrapped__))
    benchmark = SimpleNamespace(enabled=True)

    def skipped():
        try:
            skip_if_finished(benchmark, "planning", "2 sites")
        except pytest.skip.Exception:
            return True
        return False

    monkeypatch.setattr(results, "RECORDING", True)
    assert not skipped()
    results.add("planning", {"cell": "2 sites"})
    assert skipped()
    monkeypatch.setattr(results, "RECORDING", False)
    assert not skipped(), "a comparison of before and after measures both"
    monkeypatch.setattr(results, "RECORDING", True)
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text(encoding="utf-8"))
    record["provenance"]["processor"] = "another"
    results.rewrite("planning", [record])
    assert not skipped(), "times of another machine are not ours"
    results.add("planning", {"cell": "2 sites"})
    assert len(file.read_text(encoding="utf-8").splitlines()) == 2
    assert skipped()


def cell(name, dense, compact=1.0, batch=1, dtype="float32"):
    spec = {"out_dims": [2, 3], "in_dims": [2, 2]}
    timings = {"dense": {"median": dense}, "compact": {"median": compact}}
    return {"cell": name, "spec": spec, "batch": batch, "dtype": dtype, "timings": timings}


@pytest.mark.parametrize("compact", [0.1, 100.0])
def test_only_the_dense_time_decides_which_cells_were_disturbed(compact):
    quiet = [cell(f"{k}", 1.0 + k / 100, compact) for k in range(5)]
    others = [cell("more rows", 9.0, batch=16), cell("short", 9.0, dtype="bfloat16")]
    assert disturbed([*quiet, *others]) == []
    assert disturbed([*quiet, *others, cell("slow", 1.6, compact)]) == ["slow"]


def test_published_page_is_rendered_from_the_records():
    groups = {}
    for group in GROUPS:
        lines = (ROOT / f"benchmarks/results/{group}-full.jsonl").read_text(encoding="utf-8").splitlines()
        groups[group] = list({record["cell"]: record for record in map(json.loads, lines)}.values())
    assert summary_page("full", groups) == (ROOT / "docs/results/benchmarks.md").read_text(encoding="utf-8")
