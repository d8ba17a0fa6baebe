"""Recording of benchmark results, removal of disturbed cells, and the published page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
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


def test_only_a_recording_run_writes_and_skips_cells(tmp_path):
    assert "1 passed" in run(tmp_path)
    assert not list(tmp_path.iterdir()), "plain pytest-benchmark leaves nothing behind"
    assert "1 passed" in run(tmp_path, MPOCHAIN_BENCH_RECORD="1")
    (file,) = tmp_path.iterdir()
    assert "1 skipped" in run(tmp_path, MPOCHAIN_BENCH_RECORD="1")
    assert "1 passed" in run(tmp_path), "a comparison of before and after measures both"
    record = json.loads(file.read_text(encoding="utf-8"))
    record["provenance"]["processor"] = "another"
    file.write_text(json.dumps(record) + "\n", encoding="utf-8")
    assert "1 passed" in run(tmp_path, MPOCHAIN_BENCH_RECORD="1"), "times of another machine are not ours"
    assert len(file.read_text(encoding="utf-8").splitlines()) == 2


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
