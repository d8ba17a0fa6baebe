"""What every benchmark file shares: the seed, and where the numbers came from."""

from __future__ import annotations

import pytest
import torch

from mpochain.report import provenance


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    output_json["provenance"] = provenance(threads=torch.get_num_threads())
