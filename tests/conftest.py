from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# Before any test imports JAX, which otherwise turns float64 into float32 without a word.
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

settings.register_profile("mpochain", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mpochain")


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch, tmp_path):
    """No test reads or writes the user's cache, or the corpus of whoever runs it."""
    monkeypatch.delenv("MPOCHAIN_CORPUS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
