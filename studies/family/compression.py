"""Compression of PicoGPT by the forms of the family at equal parameters, and of any size from one run.

From the root of a checkout, with the corpus that the stored model was trained on (some minutes on two cores):

    python -m studies.family.compression tinyshakespeare.txt
    python studies/family/page.py
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn

import mpochain as mpo
from mpochain.report import provenance
from mpochain.system.files import write_bytes
from studies import picogpt
from studies.picogpt.evaluation import evaluate

RECORD = Path(__file__).with_suffix(".json")

METHODS = ("interpolative", "block_train", "monarch", "svd_llm", "svd", "tt_svd", "kronecker")
BUDGETS = (0.8, 0.6, 0.4, 0.3)
CUTS = (0.9, 0.7, 0.5, 0.35, 0.25)
_WINDOWS, _BATCH = 256, 16


def measured(model: nn.Module, corpus: Any, report: Any, seconds: float) -> dict[str, Any]:
    """Loss and accuracy on the whole validation split, and what the layers keep."""
    result = evaluate(model, corpus.validation)
    return {
        "parameters": report.parameters_after,
        "dense_parameters": report.parameters_before,
        "macs": report.macs_after,
        "dense_macs": report.macs_before,
        "loss": result.loss,
        "accuracy": result.accuracy,
        "seconds": seconds,
    }


def main(file: Path) -> None:
    """Measure, and write the record."""
    corpus = picogpt.load_corpus(file)
    stored = picogpt.shipped(corpus)
    if stored is None:
        raise SystemExit(f"no trained model of {file} is stored; give Tiny Shakespeare")
    dense, _ = picogpt.load_weights(stored)
    window = dense.context
    starts = [number * (len(corpus.train) - window) // _WINDOWS for number in range(_WINDOWS)]
    windows = torch.stack([corpus.train[start : start + window] for start in starts]).long()
    calibration = list(windows.split(_BATCH))
    before = evaluate(dense, corpus.validation)

    def compressed(budget: float, method: str) -> dict[str, Any]:
        model, began = copy.deepcopy(dense), time.perf_counter()
        report = mpo.compress(model, budget, calibration=calibration, method=method)
        return {"budget": budget, "method": method, **measured(model, corpus, report, time.perf_counter() - began)}

    forms = []
    for budget in BUDGETS:
        for method in METHODS:
            try:
                forms.append(compressed(budget, method))
            except mpo.MPOError as error:
                forms.append({"budget": budget, "method": method, "error": str(error).split(";")[0]})
            print(forms[-1], flush=True)
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        fits = mpo.score(dense, Path(folder, "fits"), calibration=calibration)
        fitted = {
            "seconds": time.perf_counter() - began,
            "bytes": sum(part.stat().st_size for part in fits.glob("*.safetensors")),
            "model_bytes": sum(parameter.nbytes for parameter in dense.parameters()),
        }
        for budget in CUTS:
            model, began = copy.deepcopy(dense), time.perf_counter()
            report = mpo.cut(model, fits, budget)
            cut = measured(model, corpus, report, time.perf_counter() - began)
            sizes.append({"budget": budget, "cut": cut, "compressed": compressed(budget, "interpolative")})
            print(sizes[-1], flush=True)
    setting = {
        "model": f"PicoGPT {stored.stem}",
        "corpus": f"{corpus.name}, sha256 {corpus.sha256[:16]}",
        "windows": _WINDOWS,
        "window": window,
        "dense": {"loss": before.loss, "accuracy": before.accuracy, "tokens": before.tokens},
    }
    record = {
        "setting": setting,
        "forms": forms,
        "fits": fitted,
        "sizes": sizes,
        "provenance": provenance(threads=torch.get_num_threads(), commit=True),
    }
    write_bytes(RECORD, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
