"""Tokenisation of text files, and windows of tokens."""

from __future__ import annotations

from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpochain.architectures import context_length
from mpochain.errors import ArgumentError, CorpusError
from mpochain.system.paths import as_path
from mpochain.system.reading import open_regular
from mpochain.wording import counted as _counted

__all__ = [
    "ENOUGH_WINDOWS",
    "counted",
    "read_tokens",
    "require_vocabulary",
    "require_window",
    "spare_windows",
    "starts",
    "windows",
]

# Windows of an evaluation text that are used by default, if it has more. docs/decisions/0059 has the measurement.
ENOUGH_WINDOWS = 64


def read_tokens(file: Path | str, tokenizer: Any) -> Tensor:
    """Read a text file as one row of tokens, without special tokens at its start and end.

    Args:
        file: UTF-8 text.
        tokenizer: transformers tokenizer.

    Returns:
        ``(n,)``, int64.

    Raises:
        CorpusError: the file cannot be read, is not UTF-8, or has no tokens.
    """
    try:
        with TextIOWrapper(open_regular(as_path(file, "file")), encoding="utf-8") as opened:
            text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read the text {file}: {error}; give a file of UTF-8 text") from error
    # verbose=False, because the tokenizer would warn that the text is longer than the model's context.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise CorpusError(f"{file} has no text; give a file of UTF-8 text")
    return torch.tensor(ids, dtype=torch.long, device="cpu")


def starts(total: int, window: int, count: int | None, stride: int | None = None) -> list[int]:
    """Return the start positions of all windows that fit, or of ``count`` of them, spread evenly over the text.

    Args:
        total: number of tokens in the text.
        window: tokens per window, at least 2.
        count: number of windows; None for all.
        stride: tokens from the start of a window to the start of the next; by default ``window``.

    Raises:
        CorpusError: the text has fewer than ``count`` windows, or none.

    Example:
        >>> starts(100, 10, 3), starts(35, 10, None), starts(35, 10, None, stride=5)
        ([0, 30, 60], [0, 10, 20], [0, 5, 10, 15, 20, 25])
    """
    every = range(0, total - window + 1, stride or window)
    if window < 2 or not every:
        raise CorpusError(f"a text of {_counted(total, 'token')} has no window of {window:,}; use a longer text")
    if count is None:
        return list(every)
    if not 1 <= count <= len(every):
        raise CorpusError(
            f"a text of {_counted(total, 'token')} has {_counted(len(every), 'window')} of {window:,}, not {count:,}"
        )
    return [every[k * len(every) // count] for k in range(count)]


def spare_windows(tokens: Tensor, window: int, count: int | None, most: int) -> list[Tensor]:
    """Windows of a text that :func:`windows` leaves out, at most ``most`` of them, spread evenly over the text.

    Args:
        tokens: tokens of the text, ``(n,)``.
        window: tokens per window.
        count: number of windows that are used; None for all, which leaves none.
        most: largest number of windows returned.

    Returns:
        Windows ``(1, window)``.

    Example:
        >>> [part[0, 0].item() for part in spare_windows(torch.arange(60), 10, 3, 2)]
        [10, 30]
    """
    used = set(starts(len(tokens), window, count))
    spare = [start for start in starts(len(tokens), window, None) if start not in used]
    most = min(most, len(spare))
    return [tokens[start : start + window][None] for k in range(most) for start in [spare[k * len(spare) // most]]]


def counted(total: int, window: int, count: int | Literal["all"] | None, stride: int | None = None) -> tuple[int, int]:
    """Return how many windows of a text an evaluation uses, and how many the text has.

    Args:
        total: number of tokens in the text.
        window: tokens per window, at least 2.
        count: number of windows, ``"all"``, or None for at most :data:`ENOUGH_WINDOWS`.
        stride: tokens from the start of a window to the start of the next; by default ``window``.

    Raises:
        CorpusError: the text has fewer than ``count`` windows, or none.

    Example:
        >>> counted(10_000, 100, None), counted(10_000, 100, "all"), counted(10_000, 100, 7)
        ((64, 100), (100, 100), (7, 100))
    """
    every = len(starts(total, window, None, stride))
    if count is None:
        return min(ENOUGH_WINDOWS, every), every
    return len(starts(total, window, None if count == "all" else count, stride)), every


def require_vocabulary(model: nn.Module, tokens: Tensor) -> None:
    """Check that tokens are among those that the embedding of a transformers model has rows for.

    Args:
        model: a model without ``get_input_embeddings()`` is not checked.
        tokens: integers.

    Raises:
        ArgumentError: a token has no row, as with the tokenizer of another model.

    Example:
        >>> model = nn.Linear(4, 4)
        >>> model.get_input_embeddings = lambda: nn.Embedding(10, 4)
        >>> require_vocabulary(model, torch.tensor([3, 12]))
        Traceback (most recent call last):
        ...
        mpochain.errors.ArgumentError: the text has the token 12, but the model has 10 tokens; its tokenizer is ...
    """
    read = getattr(model, "get_input_embeddings", None)
    size = getattr(read() if callable(read) else None, "num_embeddings", None)
    if isinstance(size, int) and tokens.numel() and int(tokens.max()) >= size:
        raise ArgumentError(
            f"the text has the token {int(tokens.max())}, but the model has {_counted(size, 'token')}; its tokenizer "
            "is that of another model: put the right tokenizer's files beside the model"
        )


def require_window(model: nn.Module, window: int) -> None:
    """Check that a window is no longer than the context of a model.

    Raises:
        ArgumentError: the window is longer.
    """
    longest = context_length(model)
    if longest is not None and window > longest:
        raise ArgumentError(
            f"a window of {_counted(window, 'token')} is longer than the model's context of {longest:,}; "
            "give a shorter window"
        )


def windows(tokens: Tensor, window: int, count: int | None = None) -> list[Tensor]:
    """Cut a text into windows that do not overlap: all that fit, or ``count`` of them, spread evenly over the text.

    Args:
        tokens: ``(n,)``.
        window: tokens per window, at least 2.
        count: number of windows; None for all that fit.

    Returns:
        Views ``(1, window)``, inputs for transformers models.

    Raises:
        CorpusError: the text has fewer than ``count`` windows, or none.

    Example:
        >>> [window.tolist() for window in windows(torch.arange(7), 3)]
        [[[0, 1, 2]], [[3, 4, 5]]]
    """
    return [tokens[start : start + window][None] for start in starts(len(tokens), window, count)]
