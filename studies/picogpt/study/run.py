"""Runs of the study, each saved as a JSON record and a weights file; a finished run is never repeated."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from mpochain.errors import CheckpointError
from mpochain.execution.peak_memory import peak_bytes
from mpochain.report import provenance
from mpochain.system.files import require_writable, write_bytes
from mpochain.train import TrainConfig
from studies.picogpt.corpus import Corpus
from studies.picogpt.decomposition import calibrate_linears, decompose_linears
from studies.picogpt.design import Design
from studies.picogpt.evaluation import evaluate
from studies.picogpt.model import PicoGPT, build
from studies.picogpt.size import fewest_macs_per_token, macs_per_token, parameter_count
from studies.picogpt.study.presets import preset
from studies.picogpt.study.reconstruction import reconstruction
from studies.picogpt.study.records import FORMAT, read_part, read_record, setting_as_dict
from studies.picogpt.study.settings import RunSetting
from studies.picogpt.study.step import TrainingStep
from studies.picogpt.study.timing import timing
from studies.picogpt.training import train_picogpt
from studies.picogpt.weights import load_weights, save_weights

__all__ = ["MEASURES", "run_preset"]

# Measurements of a preset other than its runs, by the name that selects them.
MEASURES = ("errors", "times")

_log = logging.getLogger(__name__)


def run_preset(name: str, corpus: Corpus, out: Path, *, only: Collection[str] = ()) -> None:
    """Run the unfinished part of a preset: its runs, the errors on its dense weights, and the times of its designs.

    Args:
        name: name of the preset.
        corpus: the text.
        out: folder of the study; the preset has a subfolder in it.
        only: rows to run, ``"errors"`` and ``"times"``; everything if empty.

    Raises:
        ArgumentError: the preset is unknown.
        OutputError: the folder is not writable.
        CheckpointError: a saved run is damaged or belongs to another setting or corpus, or dense weights that a run or
            the errors need are missing.
        CorpusError: the text is too short.
        KeyboardInterrupt: after Ctrl-C; the same call continues.
    """
    folder = require_writable(out / name)
    corpus.require_context(PicoGPT.context)
    runs = preset(name, len(corpus.vocabulary))
    for number, setting in enumerate(runs, 1):
        if finished(setting, corpus, folder) is None and (not only or setting.row in only):
            _log.info("%s %d/%d: %s", name, number, len(runs), setting.name)
            _run(setting, corpus, folder)
    if not only or "errors" in only:
        dense = next(setting for setting in runs if setting.design.family == "dense")
        _measure_errors(dense.name, folder)
    if not only or "times" in only:
        _measure_times(runs, len(corpus.vocabulary), folder)


def _measure_errors(dense: str, folder: Path) -> None:
    file, weights = folder / "reconstruction.json", _weights_file(dense, folder)
    # A fresh clone has no weights, but the recorded errors stay valid.
    if file.exists() and (not weights.exists() or read_part(file, "reconstruction")[0]["weights"] == _sha256(weights)):
        return
    _log.info("%s: reconstruction", folder.name)
    layers = reconstruction(_weights(dense, folder))
    _write_part(file, "reconstruction", {"weights": _sha256(weights), "layers": layers})


def _measure_times(runs: list[RunSetting], vocab_size: int, folder: Path) -> None:
    file = folder / "timing.json"
    designs = list(dict.fromkeys(setting.design for setting in runs))
    if file.exists():
        kept = read_part(file, "timing")[0]["designs"]
        # Older records lack memory.
        complete = all("step_peak_bytes" in record for record in kept)
        if complete and [Design(**record["design"]) for record in kept] == designs:
            return
    _log.info("%s: timing", folder.name)
    many = max(setting.config.batch_size for setting in runs if setting.config is not None)
    records = timing(designs, vocab_size, sequences=many)
    _write_part(file, "timing", {"sequences": many, "designs": records})


def finished(setting: RunSetting, corpus: Corpus, folder: Path) -> dict[str, Any] | None:
    """Return the record of a run; None if the run has not finished.

    Raises:
        CheckpointError: the record is damaged, or belongs to another setting or corpus, or to dense weights other than
            the folder's.
    """
    file = folder / f"{setting.name}.json"
    if not file.exists():
        return None
    record = read_record(file)
    if record["setting"] != setting:
        raise CheckpointError(f"{file} belongs to another setting of this run; use another folder, or remove it")
    if record["corpus"]["sha256"] != corpus.sha256:
        raise CheckpointError(f"{file} belongs to another corpus, {record['corpus']['name']}; use another folder")
    if setting.source is not None:
        source = _weights_file(setting.source, folder)
        if source.exists() and record["start"]["sha256"] != _sha256(source):
            raise CheckpointError(f"{file} belongs to weights other than those in {source}; remove one of the two")
    return record


def _weights_file(name: str, folder: Path) -> Path:
    return folder / f"{name}.safetensors"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _weights(name: str, folder: Path) -> PicoGPT:
    file = _weights_file(name, folder)
    if not file.exists():
        is_finished = (folder / f"{name}.json").exists()
        advice = (
            f"although its run is finished; remove {name}.json to run it again" if is_finished else f"run {name} first"
        )
        raise CheckpointError(f"{file} is missing, {advice}")
    model, _ = load_weights(file)
    return model


def _run(setting: RunSetting, corpus: Corpus, folder: Path) -> None:
    dense = None
    start: dict[str, Any] = {}
    if setting.source is not None:
        dense = _weights(setting.source, folder)
        start = {"source": setting.source, "sha256": _sha256(_weights_file(setting.source, folder))}
    model = _start(setting, corpus, dense)
    if setting.start == "random":
        start |= {"initialization": setting.initialization, "seed": setting.seed}
    state = folder / f"{setting.name}.state"
    record: dict[str, Any] = {
        "format": FORMAT,
        "setting": setting_as_dict(setting),
        "start": start,
        "corpus": {"name": corpus.name, "sha256": corpus.sha256},
        "parameters": parameter_count(model),
        "block_parameters": parameter_count(model.blocks[0]),
        "training": None,
    }
    if setting.config is not None:
        result = train_picogpt(
            model,
            corpus,
            setting.config,
            core_rates=setting.core_rates,
            teacher=dense if setting.lessons else None,
            lessons=setting.lessons,
            start=start,
            checkpoint=state,
            label=setting.row,
        )
        record["training"] = {
            "curve": [[point.step, point.train_loss, point.metrics] for point in result.curve],
            # Means of ten steps draw the same curve as all 2,000 losses of a run.
            "losses": [
                round(sum(part) / len(part), 5)
                for first in range(0, len(result.losses), 10)
                if (part := result.losses[first : first + 10])
            ],
            "decay": "alike",
            "seconds": result.seconds,
            "tokens_per_second": result.tokens_per_second,
        }
    final = evaluate(model, corpus.validation)
    record["validation"] = {
        "loss": final.loss,
        "perplexity": final.perplexity,
        "accuracy": final.accuracy,
        "tokens": final.tokens,
    }
    record |= _costs(model, setting.config)
    record["provenance"] = provenance(threads=torch.get_num_threads(), commit=True)
    training = {**record["setting"], "validation": record["validation"]}
    save_weights(_weights_file(setting.name, folder), model, corpus, training)
    _write(folder / f"{setting.name}.json", record)
    state.unlink(missing_ok=True)


def _start(setting: RunSetting, corpus: Corpus, dense: PicoGPT | None) -> PicoGPT:
    """Build the model before training."""
    if setting.start == "random":
        return build(
            design=setting.design,
            vocab_size=len(corpus.vocabulary),
            seed=setting.seed,
            initialization=setting.initialization,
        )
    assert dense is not None
    if setting.start == "tt_svd":
        return decompose_linears(dense, setting.design)
    return calibrate_linears(dense, setting.design, corpus)


def _costs(model: PicoGPT, config: TrainConfig | None) -> dict[str, int | None]:
    """Multiply-adds per token, and additional peak bytes during a training step (None if untrained)."""
    tokens = torch.zeros((config or TrainConfig()).batch_size, PicoGPT.context, dtype=torch.long)
    peak = None
    if config is not None:
        step = TrainingStep(copy.deepcopy(model), tokens)
        step()  # allocates the optimiser state, which is not counted
        peak = peak_bytes(step)
    return {
        "macs_per_token": macs_per_token(model, tokens.numel()),
        "fewest_macs_per_token": fewest_macs_per_token(model),
        "step_peak_bytes": peak,
    }


def _write_part(file: Path, part: str, measured: object) -> None:
    _write(file, {"provenance": provenance(threads=torch.get_num_threads(), commit=True), part: measured})


def _write(file: Path, record: dict[str, Any]) -> None:
    write_bytes(file, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
