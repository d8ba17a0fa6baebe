"""Fixtures of all benchmarks: seed, plan cache of the run, and provenance of the results."""

from __future__ import annotations

import pytest
import torch

from mpochain.report import provenance


@pytest.fixture(scope="session")
def _cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_plans(_cache, monkeypatch) -> None:
    """Measure plans in this run, because those in the user's cache were measured under another load."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(_cache))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    output_json["provenance"] = provenance(threads=torch.get_num_threads(), commit=True)
