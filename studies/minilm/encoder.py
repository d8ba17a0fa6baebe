"""Sentence encoder of all-MiniLM-L6-v2, the sentences of a text, and how close two sets of embeddings are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.cli.options import quiet_transformers
from mpochain.errors import ArgumentError

__all__ = ["SentenceEncoder", "agreement", "batches", "embeddings", "load_encoder", "sentences"]

# Words of a sentence, punctuation included; shorter ones are often fragments of lists.
_SHORTEST, _LONGEST = 8, 40
_NEIGHBOURS = 10

Batch = dict[str, Tensor]


class SentenceEncoder(nn.Module):
    """Mean of the hidden states over the tokens of a sentence, with norm 1: ``(B, T) -> (B, D)``.

    Args:
        transformer: model of transformers whose output has ``last_hidden_state``.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed a batch of sentences; padding, where the mask is 0, has no influence."""
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(states.dtype)
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def load_encoder(folder: Path) -> tuple[SentenceEncoder, Any]:
    """The encoder and its tokenizer, from the folder of the model."""
    from transformers import AutoModel, AutoTokenizer

    # transformers reports the pooler, which sentence embeddings do not use, as an unexpected weight.
    with quiet_transformers():
        transformer = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
    return SentenceEncoder(transformer).eval(), AutoTokenizer.from_pretrained(folder)


def sentences(text: str, count: int) -> list[str]:
    """Distinct sentences of WikiText, spread evenly over the text: 8 to 40 words, without unknown words.

    Args:
        text: the text, tokenised as WikiText is, with one paragraph on each line.
        count: number of sentences.

    Raises:
        ArgumentError: the text has fewer sentences.

    Example:
        >>> sentences("It may weigh 1 @,@ 000 g or more . It is a <unk> . In life it is blue , not red .", 2)
        ['It may weigh 1,000 g or more .', 'In life it is blue , not red .']
    """
    paragraphs = [line.strip() for line in text.splitlines() if not line.strip().startswith("=")]
    found = [
        sentence
        for paragraph in paragraphs
        for sentence in re.split(r"(?<= [.!?]) ", re.sub(r" @(.)@ ", r"\1", paragraph))
        if "<unk>" not in sentence and _SHORTEST <= len(sentence.split()) <= _LONGEST
    ]
    distinct = list(dict.fromkeys(found))
    if len(distinct) < count:
        raise ArgumentError(f"the text has {len(distinct):,} usable sentences, but {count:,} are needed; give another")
    return [distinct[number * len(distinct) // count] for number in range(count)]


def batches(tokenizer: Any, texts: Sequence[str], size: int = 64) -> list[Batch]:
    """Sentences in batches, each padded to its longest sentence; sorted by length, so that little is padded."""
    ordered = sorted(texts, key=lambda text: (len(text), text))
    encoded = [
        tokenizer(ordered[first : first + size], padding=True, return_tensors="pt")
        for first in range(0, len(ordered), size)
    ]
    return [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in encoded]


@torch.no_grad()
def embeddings(encoder: nn.Module, data: Sequence[Batch]) -> Tensor:
    """Embeddings of all sentences ``(n, D)``."""
    return torch.cat([encoder(**batch) for batch in data])


def agreement(dense: Tensor, compressed: Tensor) -> dict[str, float]:
    """How close the embeddings of a compressed model are to those of the dense one.

    Args:
        dense: ``(n, D)``, rows of norm 1.
        compressed: the same sentences, ``(n, D)``.

    Returns:
        The mean cosine of each sentence's two embeddings; Spearman's rank correlation of the similarities of all pairs
        of sentences; the share of each sentence's 10 nearest neighbours that are the same.

    Example:
        >>> rows = F.normalize(torch.randn(20, 8), dim=1)
        >>> {name: round(value, 4) for name, value in agreement(rows, rows).items()}
        {'cosine': 1.0, 'spearman': 1.0, 'neighbours': 1.0}
    """
    pairs = torch.triu_indices(len(dense), len(dense), offset=1)
    similarities = [rows.double() @ rows.double().T for rows in (dense, compressed)]
    ranks = spearmanr(*(values[pairs[0], pairs[1]].numpy() for values in similarities))
    nearest = []
    for values in similarities:
        chosen = values.fill_diagonal_(-2.0).topk(_NEIGHBOURS, dim=1).indices
        nearest.append(torch.zeros_like(values, dtype=torch.bool).scatter_(1, chosen, True))
    shared = (nearest[0] & nearest[1]).sum(1) / _NEIGHBOURS
    cosines = (dense.double() * compressed.double()).sum(1)
    return {
        "cosine": float(cosines.mean()),
        "spearman": float(ranks.statistic),
        "neighbours": float(shared.mean()),
    }
