"""A language model of words, small enough that its embedding matters, and its text."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# All models have these; what is compared is the embedding.
WORDS, COLUMNS, HEADS, LAYERS, CONTEXT, DROPOUT = 10_000, 256, 4, 2, 64, 0.3

UNKNOWN, END = "<unk>", "<eos>"

# The last words of the training text, which rates and epochs are chosen by.
_HELD_OUT = 0.1


class Text:
    """WikiText-2 as words: its validation text to learn from, its test text to be measured on.

    Args:
        learn: the one. The most frequent words of what is not held out of it are the vocabulary, so that words are as
            unknown in what is held out as in the other.
        test: the other.
    """

    def __init__(self, learn: Path, test: Path) -> None:
        words = _words(learn)
        cut = int(len(words) * (1 - _HELD_OUT))
        counts = Counter(words[:cut])
        counts.pop(UNKNOWN, None)
        kept = [word for word, _ in counts.most_common(WORDS - 1)]
        self.vocabulary = [UNKNOWN, *kept]
        self.counts = {word: counts[word] for word in kept}
        numbers = {word: number for number, word in enumerate(self.vocabulary)}
        learned = torch.tensor([numbers.get(word, 0) for word in words])
        self.train, self.held_out = learned[:cut], learned[cut:]
        self.test = torch.tensor([numbers.get(word, 0) for word in _words(test)])

    def unknown(self) -> float:
        """Share of the test text's words that are not in the vocabulary."""
        return float((self.test == 0).float().mean())


class WordModel(nn.Module):
    """Words to logits ``(n, length, V)``: an embedding, two blocks of a transformer, and a dense head of its own.

    Blocks and head compute in bfloat16, the embedding as it would anywhere.

    Args:
        words: the embedding, from tokens to ``COLUMNS`` numbers each.
        start: deviation of what positions are at first.
    """

    def __init__(self, words: nn.Module, start: float) -> None:
        super().__init__()
        self.words = words
        self.positions = nn.Embedding(CONTEXT, COLUMNS)
        nn.init.normal_(self.positions.weight, std=start)
        # No dropout inside: drawing its masks would be a fifth of a step.
        block = nn.TransformerEncoderLayer(
            COLUMNS, HEADS, 4 * COLUMNS, 0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.blocks = nn.TransformerEncoder(block, LAYERS, nn.LayerNorm(COLUMNS), enable_nested_tensor=False)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(COLUMNS, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(n, length)`` to ``(n, length, V)``, for lengths up to ``CONTEXT``."""
        length = tokens.shape[-1]
        x = self.dropout(self.words(tokens) + self.positions.weight[:length])
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.head(self.dropout(self.blocks(x, mask, is_causal=True)))
        return logits.float()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy, nats per word."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def sample(words: Tensor, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """So many windows from anywhere, and the word after each of their words."""
    starts = torch.randint(len(words) - CONTEXT, (count, 1), generator=generator)
    places = starts + torch.arange(CONTEXT)
    return words[places], words[places + 1]


@torch.no_grad()
def perplexity(model: nn.Module, words: Tensor) -> float:
    """Of every word of a text but the first, in windows that do not overlap; what is left at the end is left out."""
    model.eval()
    count = (len(words) - 1) // CONTEXT * CONTEXT
    inputs, targets = words[:count].view(-1, CONTEXT), words[1 : count + 1].view(-1, CONTEXT)
    total = sum(
        float(F.cross_entropy(model(some).flatten(0, 1), aims.flatten(), reduction="sum"))
        for some, aims in zip(inputs.split(64), targets.split(64), strict=True)
    )
    return math.exp(total / count)


def _words(file: Path) -> list[str]:
    found: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip():
            found += [*line.split(), END]
    return found
