"""A text file as tokens, and tokens as windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.architectures import context_length
from mpochain.errors import CorpusError, SpecError

__all__ = ["read_tokens", "require_window", "starts", "windows"]


def read_tokens(file: Path | str, tokenizer: Any) -> Tensor:
    """The tokens of a whole file, in one piece, without the special ones that a tokenizer may put around a text.

    Args:
        file: UTF-8 text.
        tokenizer: of transformers.

    Returns:
        ``(n,)``, int64.

    Raises:
        CorpusError: a file that cannot be read, is not UTF-8, or holds no token.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read the text {file}: {error}; give a file of UTF-8 text") from error
    # The whole text is longer than any model reads at once, of which the tokenizer would warn.
    found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not found:
        raise CorpusError(f"{file} holds no text")
    return torch.tensor(found, dtype=torch.long)


def starts(total: int, window: int, count: int | None, stride: int | None = None) -> list[int]:
    """Where windows begin: all that fit, or as many as are asked for, evenly spread over the text.

    Args:
        total: tokens of the text.
        window: tokens of a window, 2 at least.
        count: how many; None for all.
        stride: tokens from one to the next where all are taken; a whole window by default.

    Raises:
        CorpusError: a text with fewer windows than are asked for, or none.

    Example:
        >>> starts(100, 10, 3), starts(35, 10, None), starts(35, 10, None, stride=5)
        ([0, 30, 60], [0, 10, 20], [0, 5, 10, 15, 20, 25])
    """
    every = range(0, total - window + 1, stride or window)
    if window < 2 or not every:
        raise CorpusError(f"a text of {total:,} tokens has no window of {window:,}; use a longer text")
    if count is None:
        return list(every)
    if not 1 <= count <= len(every):
        raise CorpusError(f"a text of {total:,} tokens has {len(every):,} windows of {window:,}, not {count:,}")
    return [every[k * len(every) // count] for k in range(count)]


def require_window(model: nn.Module, window: int) -> None:
    """Refuse windows of more tokens than a model of transformers has positions for.

    Raises:
        SpecError: they are longer.
    """
    longest = context_length(model)
    if longest is not None and window > longest:
        raise SpecError(
            f"the window of {window:,} tokens is longer than the {longest:,} that the model can read; give a shorter "
            "window"
        )


def windows(tokens: Tensor, window: int, count: int | None = None) -> list[Tensor]:
    """Windows of a text that do not overlap, evenly spread if there are more than ``count``.

    Args:
        tokens: ``(n,)``.
        window: tokens of each.
        count: how many; None for all that fit.

    Returns:
        Tensors ``(1, window)``, which models of transformers take as they are.

    Raises:
        CorpusError: a text with fewer windows.

    Example:
        >>> [each.tolist() for each in windows(torch.arange(7), 3)]
        [[[0, 1, 2]], [[3, 4, 5]]]
    """
    return [tokens[start : start + window][None] for start in starts(len(tokens), window, count)]
