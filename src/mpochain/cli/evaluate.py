"""``mpochain eval``: perplexity of a language model on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.options import Dtype, Json, print_json, quiet_transformers
from mpochain.system.progress import counting, say

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder, dense or compressed, .gguf file, or name on the hub.")],
    text: Annotated[Path, typer.Option(help="UTF-8 file.")],
    window: Annotated[int, typer.Option(help="Tokens that are read at once.", min=2)] = 512,
    stride: Annotated[int | None, typer.Option(help="Tokens from one window to the next; a window.", min=1)] = None,
    windows: Annotated[int | None, typer.Option(help="How many, evenly spread; all if not given.", min=1)] = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Print the perplexity of a model on a text, and on how much of it."""
    from mpochain.language import load_language_model, perplexity, read_tokens

    with quiet_transformers(), counting() as counter:
        say(f"reading {model}")
        language = load_language_model(model, dtype=dtype or "auto")
        tokens = read_tokens(text, language.tokenizer)
        found = perplexity(
            language.model, tokens, window=window, stride=stride, count=windows, progress=counter("windows")
        )
    if as_json:
        print_json({"model": model, "text": str(text), **found.as_dict()})
    else:
        print(
            f"perplexity {found.perplexity:.3f} ({found.loss:.4f} nats per token) on {found.tokens:,} tokens, "
            f"{found.windows} windows of {found.window}, stride {found.stride}"
        )
