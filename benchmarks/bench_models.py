"""Benchmark of whole language models with random weights: prefill, one token with a cache, and a training step."""

from __future__ import annotations

import gc
import io

import grid
import pytest
import results
import torch
from cells import skip_if_finished
from interleave import interleave
from models import MODELS, decode, macs, prefill, training_step, variants

from mpochain.execution.peak_memory import peak_bytes
from mpochain.surgery import compressed_layers

_NAMES = {"tiny": ("tiny",), "small": ("PicoGPT",)}.get(grid.NAME, ("SmolLM2-135M", "GPT-2 small", "PicoGPT"))


def _saved_bytes(model) -> int:
    # Matrices in int8 are no tensors of the state dict, so what is written to a file counts.
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.getbuffer().nbytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", _NAMES)
def bench_models(benchmark, name, dtype):
    cell = f"{name}, {dtype}"
    skip_if_finished(benchmark, "models", cell)
    shape = MODELS[name]
    torch.manual_seed(0)
    dense = shape.build().eval().to(getattr(torch, dtype))
    models = variants(dense, compiles=grid.NAME != "tiny")
    vocabulary = next(module for module in dense.modules() if isinstance(module, torch.nn.Embedding)).num_embeddings
    tokens = torch.randint(vocabulary, (1, shape.prompt))
    timed = {"rounds": 9, "most_seconds": 15.0} if benchmark.enabled else {"rounds": 1, "round_seconds": 0.0}
    calls = {
        "prefill": {label: prefill(model, tokens, last_only=shape.has_cache) for label, model in models.items()},
        "token": {label: decode(model, tokens) for label, model in models.items()} if shape.has_cache else {},
    }
    timings = {}
    for kind, functions in calls.items():
        for function in functions.values():
            function(0), function(0)  # plans, caches, compilation
        timings[kind] = interleave(functions, **timed) if functions else {}
    peaks = {label: peak_bytes(lambda function=function: function(0)) for label, function in calls["prefill"].items()}
    sizes = {label: _saved_bytes(model) for label, model in models.items()}
    shares = {
        label: {"prefill": macs(model, dense, head=not shape.has_cache), "token": macs(model, dense, head=True)}
        for label, model in models.items()
        if label == "dense" or compressed_layers(model)
    }
    benchmark.group = f"models: {cell}"
    benchmark.pedantic(calls["prefill"]["dense"], args=(0,), rounds=1)
    trained = {label: model for label, model in models.items() if "," not in label}
    del models, calls, functions, function
    gc.collect()
    steps = {label: training_step(model.train(), tokens) for label, model in trained.items()}
    for step in steps.values():
        step(0)
    timings["training"] = interleave(steps, **timed)
    benchmark.extra_info.update(timings=timings)
    if benchmark.enabled:
        record = {"cell": cell, "model": name, "dtype": dtype, "prompt": shape.prompt, "macs": shares, "bytes": sizes}
        results.add("models", {**record, "peaks": peaks, "timings": timings})
