"""``mpochain eval``: perplexity of a language model on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mpochain.cli.options import Device, Dtype, EvaluationWindows, Json, count_or_all, print_json, quiet_transformers
from mpochain.errors import ArgumentError
from mpochain.system.progress import counting

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="Dense or compressed model: a folder, a .gguf file, or a name on the Hugging Face hub."),
    ],
    text: Annotated[Path, typer.Option(help="UTF-8 text to measure perplexity on.")],
    window: Annotated[int, typer.Option(help="Tokens per window.", min=2)] = 512,
    stride: Annotated[
        int | None, typer.Option(help="Tokens between the starts of windows; by default the window.", min=1)
    ] = None,
    windows: EvaluationWindows = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Print the perplexity of a model on a text, and the number of tokens it was measured on."""
    from mpochain.language import perplexity, read_tokens
    from mpochain.language.text import counted
    from mpochain.workflows.checks import require_found
    from mpochain.workflows.inputs import read_model

    require_found({"model": model}, {"--text": text})
    with quiet_transformers(), counting() as counters:
        language = read_model(model, dtype=dtype or "auto", device=device or "cpu")
        tokens = read_tokens(text, language.tokenizer)
        used, every = counted(len(tokens), window, _count(windows), stride)
        result = perplexity(
            language.model, tokens, window=window, stride=stride, count=used, progress=counters("evaluation windows")
        )
    if as_json:
        print_json({"model": model, "text": str(text), **result.as_dict(), "windows_of_text": every})
    else:
        print(
            f"perplexity {result.perplexity:.3f} ({result.loss:.4f} nats per token) on {result.tokens:,} tokens, "
            f"{used:,} of {every:,} windows of {result.window}, stride {result.stride}"
        )


def _count(windows: str | None) -> int | Literal["all"] | None:
    count = count_or_all(windows)
    if count is None or count == "all":
        return "all" if count else None
    if not isinstance(count, int) or count < 1:
        raise ArgumentError(f"--windows {windows}: expected a number of at least 1, or all")
    return count
