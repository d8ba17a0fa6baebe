"""Page of what several processes gain: ``python studies/scaling/page.py`` writes docs/results/scaling.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpochain.report import Column
from mpochain.report.origin import origin
from mpochain.report.page import Block, Heading, Page, Table, Text
from mpochain.system.files import write_bytes

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "results" / "scaling.md"

_COMPRESSION = (
    Column("processes", "processes of one thread"),
    Column("seconds", "seconds", ",.0f"),
    Column("predicted", "predicted seconds", ",.0f"),
    Column("gain", "times as fast as one", ".2f"),
    Column("peak", "peak of the first process, GiB", ".2f"),
    Column("predicted_peak", "predicted peak, GiB", ".2f"),
    Column("same", "same choices as one"),
)
_STREAMED = (
    Column("way", "model"),
    Column("processes", "processes of one thread"),
    Column("seconds", "seconds", ",.0f"),
    Column("peak", "peak of the first process, GiB", ".2f"),
    Column("same", "same choices as in memory"),
)
_STREAMING = (
    Column("processes", "processes"),
    Column("before", "files before, GB", ".2f"),
    Column("after", "files after, GB", ".2f"),
    Column("peak", "peak memory, GB", ".2f"),
    Column("starts", "starts"),
)
_FINETUNING = (
    Column("processes", "processes of one thread"),
    Column("way", "parameters"),
    Column("rate", "tokens per second", ",.0f"),
    Column("predicted", "predicted", ",.0f"),
    Column("gain", "times as fast as one", ".2f"),
    Column("peak", "peak of the first process, GiB", ".2f"),
    Column("predicted_peak", "predicted peak, GiB", ".2f"),
    Column("difference", "largest difference of a loss from one process", ".1e"),
)


def _compression(content: dict[str, Any]) -> list[Block]:
    setting, runs = content["setting"], content["runs"]
    (alone,) = (run for run in runs if run["processes"] == 1)
    text = (
        f"{setting['model']} to {setting['budget']:.0%} of the parameters of its linear layers, low rank in "
        f"interpolative form, {setting['windows']} windows of 512 of {setting['text']}: statistics, fits and layers, "
        "without reading, evaluating and writing the model (`python -m studies.scaling.compression`). Predictions are "
        "those of `mpochain plan-run`."
    )
    rows = [
        {
            "processes": run["processes"],
            "seconds": run["seconds"],
            "predicted": run["predicted_seconds"],
            "predicted_peak": run["predicted_peak_bytes"] / 2**30,
            "gain": alone["seconds"] / run["seconds"],
            "peak": run["peak_bytes"] / 2**30,
            "same": "yes" if run["forms"] == alone["forms"] else "no",
        }
        for run in runs
    ]
    return [Heading("Compression"), Text((text,)), Table(_COMPRESSION, rows), Text(origin([content["provenance"]]))]


def _streamed(content: dict[str, Any], compression: dict[str, Any]) -> list[Block]:
    setting = content["setting"]
    whole = next(run for run in compression["runs"] if run["processes"] == 1)
    if setting != compression["setting"]:
        raise ValueError("the streamed compression has other settings than the plain one")
    text = (
        f"{setting['model']} as above, in memory and with one block at a time (`python -m studies.scaling.compression "
        "--stream`)."
    )
    rows = [
        {
            "way": way,
            "processes": run["processes"],
            "seconds": run["seconds"],
            "peak": run["peak_bytes"] / 2**30,
            "same": f"{sum(map(str.__eq__, run['forms'], whole['forms']))} of {len(run['forms'])}",
        }
        for way, runs in (("in memory", [whole]), ("streamed", content["runs"]))
        for run in runs
    ]
    return [
        Heading("One block at a time"),
        Text((text,)),
        Table(_STREAMED, rows),
        Text(origin([content["provenance"]])),
    ]


def _streaming(content: dict[str, Any]) -> list[Block]:
    setting = content["setting"]
    text = (
        f"A random Llama of {setting['layers']} blocks ({setting['hidden']} wide), "
        f"{setting['model_bytes'] / 1e9:.1f} GB of float32 in files, to {setting['budget']:.0%}, gradients included, "
        f"{setting['windows']} windows of {setting['window']} of {setting['text']} "
        "(`python studies/scaling/streaming.py`). The peak is that of all processes together, libraries included, over "
        "all starts of a run that was interrupted; the commit is that of the last start."
    )
    rows = [
        {
            "processes": run["processes"],
            "before": setting["model_bytes"] / 1e9,
            "after": run["bytes_after"] / 1e9,
            "peak": run["peak_bytes"] / 1e9,
            "starts": run["starts"],
        }
        for run in content["runs"]
    ]
    return [
        Heading("Larger than memory"),
        Text((text,)),
        Table(_STREAMING, rows),
        Text(origin([content["provenance"]])),
    ]


def _finetuning(content: dict[str, Any]) -> list[Block]:
    setting, runs = content["setting"], content["runs"]
    (alone,) = (run for run in runs if run["processes"] == 1)
    text = (
        f"{setting['model']}, taught by {setting['teacher']}: {setting['steps']} steps of 4 windows of 512 of "
        f"{setting['text']}, which the processes share (`python -m studies.scaling.finetuning`). "
        "Predictions are those of `mpochain plan-run`."
    )
    rows = [
        {
            "processes": run["processes"],
            "way": "sharded" if run["sharded"] else "copied",
            "rate": run["tokens_per_second"],
            "predicted": run["predicted_tokens_per_second"],
            "predicted_peak": run["predicted_peak_bytes"] / 2**30,
            "gain": run["tokens_per_second"] / alone["tokens_per_second"],
            "peak": run["peak_bytes"] / 2**30,
            "difference": max(abs(a - b) for a, b in zip(run["losses"], alone["losses"], strict=True)),
        }
        for run in runs
    ]
    return [Heading("Finetuning"), Text((text,)), Table(_FINETUNING, rows), Text(origin([content["provenance"]]))]


def write_page(folder: Path = HERE, page: Path = PAGE) -> None:
    """Write the page from the records in a folder."""
    blocks: list[Block] = [
        Text(
            (
                "Generated by `python studies/scaling/page.py` from the records beside it; not edited by hand. All "
                "processes are on one machine of two cores, which they use in full: what is gained is what one process "
                "of one thread leaves idle.",
            )
        )
    ]
    names = ("compression", "streamed", "streaming", "finetuning")
    records = {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in names
        if (folder / f"{name}.json").exists()
    }
    for name, record in records.items():
        if name == "streamed":
            blocks += _streamed(record, records["compression"])
        else:
            blocks += {"compression": _compression, "streaming": _streaming, "finetuning": _finetuning}[name](record)
    write_bytes(page, Page("Scaling out", blocks).markdown(page.parent).encode())


if __name__ == "__main__":
    write_page()
