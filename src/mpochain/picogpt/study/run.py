"""Runs of a study, each kept as one JSON and one file of weights: what finished is never run again."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from mpochain.errors import CheckpointError
from mpochain.execution.peak_memory import peak_bytes
from mpochain.picogpt.calibration import calibrate_linears
from mpochain.picogpt.corpus import Corpus
from mpochain.picogpt.decomposition import decompose_linears
from mpochain.picogpt.design import Design
from mpochain.picogpt.evaluation import evaluate
from mpochain.picogpt.model import PicoGPT, build
from mpochain.picogpt.size import fewest_macs_per_token, macs_per_token, parameter_count
from mpochain.picogpt.study.presets import preset
from mpochain.picogpt.study.reconstruction import reconstruction
from mpochain.picogpt.study.records import FORMAT, read_part, read_record
from mpochain.picogpt.study.settings import RunSetting
from mpochain.picogpt.study.step import TrainingStep
from mpochain.picogpt.study.timing import timing
from mpochain.picogpt.training import train_picogpt
from mpochain.picogpt.weights import load_weights, save_weights
from mpochain.report import provenance
from mpochain.system.files import require_writable, write_bytes
from mpochain.train import TrainConfig

__all__ = ["MEASURES", "run_preset"]

# What is measured beside the runs, by the name that asks for it alone.
MEASURES = ("errors", "times")


def run_preset(
    name: str,
    corpus: Corpus,
    out: Path,
    *,
    only: Collection[str] = (),
    log: Callable[[str], None] = print,
) -> None:
    """Run what a preset still lacks: its runs, the errors of its dense weights, and the times of its designs.

    Args:
        name: of the preset.
        corpus: the text.
        out: folder of this study; the preset has a folder of its own in it.
        only: rows to run, and ``"errors"`` and ``"times"``; everything if empty.
        log: told what happens.

    Raises:
        OutputError: the folder cannot be written.
        CheckpointError: a kept run is damaged or of another setting or corpus, or the weights that a run starts from or
            errors are measured of are missing.
        CorpusError: the text is too short.
        KeyboardInterrupt: after Ctrl-C; the same call goes on.
    """
    folder = require_writable(out / name)
    corpus.require_context(PicoGPT.context)
    runs = preset(name, len(corpus.vocabulary))
    for number, setting in enumerate(runs, 1):
        if finished(setting, corpus, folder) is None and (not only or setting.row in only):
            log(f"{name} {number}/{len(runs)}: {setting.name}")
            _run(setting, corpus, folder)
    if not only or "errors" in only:
        dense = next(setting for setting in runs if setting.design.family == "dense")
        _measure_errors(dense.name, folder, log)
    if not only or "times" in only:
        _measure_times(runs, len(corpus.vocabulary), folder, log)


def _measure_errors(dense: str, folder: Path, log: Callable[[str], None]) -> None:
    file, weights = folder / "reconstruction.json", _weights_file(dense, folder)
    # Without the weights, in a fresh clone say, what was measured of them stands.
    if file.exists() and (not weights.exists() or read_part(file, "reconstruction")[0]["weights"] == _sha256(weights)):
        return
    log(f"{folder.name}: reconstruction")
    layers = reconstruction(_weights(dense, folder))
    _write_part(file, "reconstruction", {"weights": _sha256(weights), "layers": layers})


def _measure_times(runs: list[RunSetting], vocab_size: int, folder: Path, log: Callable[[str], None]) -> None:
    file = folder / "timing.json"
    designs = list(dict.fromkeys(setting.design for setting in runs))
    if file.exists():
        found = read_part(file, "timing")[0]["designs"]
        # Times of older versions had no memory beside them.
        if [Design(**each["design"]) for each in found] == designs and all("step_peak_bytes" in each for each in found):
            return
    log(f"{folder.name}: timing")
    many = max(setting.config.batch_size for setting in runs if setting.config is not None)
    timed = timing(designs, vocab_size, sequences=many)
    _write_part(file, "timing", {"sequences": many, "designs": timed})


def finished(setting: RunSetting, corpus: Corpus, folder: Path) -> dict[str, Any] | None:
    """The record of a run, None if it has not finished.

    Raises:
        CheckpointError: it is damaged, of another setting or corpus, or of other dense weights than are there.
    """
    file = folder / f"{setting.name}.json"
    if not file.exists():
        return None
    record = read_record(file)
    if record["setting"] != setting.model_dump(mode="json"):
        raise CheckpointError(f"{file} is of another setting of this run; use another folder, or remove it")
    if record["corpus"]["sha256"] != corpus.sha256:
        raise CheckpointError(f"{file} is of another corpus, {record['corpus']['name']}; use another folder")
    if setting.source is not None:
        source = _weights_file(setting.source, folder)
        if source.exists() and record["start"]["sha256"] != _sha256(source):
            raise CheckpointError(f"{file} is of other weights than {source} holds; remove one of the two")
    return record


def _weights_file(name: str, folder: Path) -> Path:
    return folder / f"{name}.safetensors"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _weights(name: str, folder: Path) -> PicoGPT:
    file = _weights_file(name, folder)
    if not file.exists():
        finished = (folder / f"{name}.json").exists()
        what = f"although its run finished; remove {name}.json to run it again" if finished else f"run {name} first"
        raise CheckpointError(f"{file} is missing, {what}")
    model, _ = load_weights(file)
    return model


def _run(setting: RunSetting, corpus: Corpus, folder: Path) -> None:
    size = len(corpus.vocabulary)
    dense = None
    start: dict[str, Any] = {}
    if setting.source is not None:
        dense = _weights(setting.source, folder)
        start = {"source": setting.source, "sha256": _sha256(_weights_file(setting.source, folder))}
    if setting.start != "random":
        assert dense is not None
        by_weights = setting.start == "tt_svd"
        model = (
            decompose_linears(dense, setting.design) if by_weights else calibrate_linears(dense, setting.design, corpus)
        )
    else:
        model = build(design=setting.design, vocab_size=size, seed=setting.seed, initialization=setting.initialization)
        start |= {"initialization": setting.initialization, "seed": setting.seed}
    state = folder / f"{setting.name}.state"
    record: dict[str, Any] = {
        "format": FORMAT,
        "setting": setting.model_dump(mode="json"),
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
            # Every loss would be 2,000 numbers a run; means of ten steps draw the same curve.
            "losses": [
                round(sum(part) / len(part), 5)
                for start in range(0, len(result.losses), 10)
                if (part := result.losses[start : start + 10])
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


def _costs(model: PicoGPT, config: TrainConfig | None) -> dict[str, int | None]:
    """Multiply-adds per token, and the most bytes of a training step, if it trains, beyond what was alive before it."""
    tokens = torch.zeros((config or TrainConfig()).batch_size, PicoGPT.context, dtype=torch.long)
    peak = None
    if config is not None:
        step = TrainingStep(copy.deepcopy(model), tokens)
        step()  # the state of the optimiser is no part of what a step takes
        peak = peak_bytes(step)
    return {
        "macs_per_token": macs_per_token(model, tokens.numel()),
        "fewest_macs_per_token": fewest_macs_per_token(model),
        "step_peak_bytes": peak,
    }


def _write_part(file: Path, part: str, made: object) -> None:
    _write(file, {"provenance": provenance(threads=torch.get_num_threads(), commit=True), part: made})


def _write(file: Path, record: dict[str, Any]) -> None:
    write_bytes(file, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
