"""``python studies/kronecker/planted.py``: shuffled Kronecker sums that the search for an order should find again.

Random sums of four products, 768x3072, rows and columns in a random order; ``planted.json`` beside this file has the
error and the seconds of each of ten.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpochain import ChainSpec
from mpochain.decomposition import permuted_kronecker
from mpochain.report import provenance
from mpochain.system.files import write_bytes

SPEC = ChainSpec((384, 2), (768, 4), 4)
SEEDS = range(10)


def planted(seed: int) -> np.ndarray[Any, Any]:
    """A shuffled sum of random products."""
    random = np.random.default_rng(seed)
    (m1, m2), (n1, n2) = SPEC.out_dims, SPEC.in_dims
    matrix = sum(np.kron(random.normal(size=(m1, n1)), random.normal(size=(m2, n2))) for _ in range(SPEC.max_bond or 1))
    rows, columns = (random.permutation(size) for size in SPEC.shape)
    return np.asarray(matrix)[rows][:, columns]


def main() -> None:
    """Search for the order of every sum."""
    searches: list[dict[str, Any]] = []
    for seed in SEEDS:
        matrix, began = planted(seed), time.perf_counter()
        error = permuted_kronecker(matrix, SPEC).relative_error
        searches.append({"seed": seed, "error": error, "seconds": time.perf_counter() - began})
        print(searches[-1], flush=True)
    record = {
        "spec": str(SPEC),
        "found": searches,
        "provenance": provenance(threads=torch.get_num_threads(), commit=True),
    }
    write_bytes(Path(__file__).with_name("planted.json"), (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
