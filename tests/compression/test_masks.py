"""Masked positions: neither moments nor losses nor counts of rows see them."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

import mpochain as mpo
from mpochain import MPOError
from mpochain.compression import collect_moments
from mpochain.compression.selection import dense_layers
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.surgery.masks import Masks, arguments_of, unmasked_positions

LENGTH, PADDED = 6, 15


class Tagger(nn.Module):
    """Works on each position alone, so that padding cannot reach the data."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.up, self.down, self.out = (
            nn.Embedding(20, 8),
            nn.Linear(8, 12),
            nn.Linear(12, 8),
            nn.Linear(8, 5),
        )

    def forward(self, input_ids, attention_mask=None, labels=None, src_key_padding_mask=None):
        x = self.words(input_ids)
        return self.out(x + self.down(torch.relu(self.up(x))))


def plain():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 20, (3, LENGTH), generator=generator) for _ in range(2)]


def padded(ids, left):
    filling = torch.zeros(len(ids), PADDED - LENGTH, dtype=torch.long)
    kept = torch.ones_like(ids), filling
    parts = (filling, ids) if left else (ids, filling)
    return torch.cat(parts, 1), torch.cat(kept[::-1] if left else kept, 1)


MASKS = {
    "integers": lambda ids, kept: {"attention_mask": kept},
    "booleans": lambda ids, kept: {"attention_mask": kept.bool()},
    "floats": lambda ids, kept: {"attention_mask": kept.float()},
    "added to the scores": lambda ids, kept: {"attention_mask": (1.0 - kept) * -1e9},
    "queries and keys": lambda ids, kept: {"attention_mask": (kept[:, None, None] * torch.ones(PADDED, 1)) != 0},
    "queries and keys, added": lambda ids, kept: {
        "attention_mask": (1.0 - kept[:, None, None].expand(-1, 1, PADDED, -1).float()) * torch.finfo().min
    },
    "true at padding": lambda ids, kept: {"src_key_padding_mask": kept == 0},
    "labels": lambda ids, kept: {"labels": torch.where(kept == 0, -100, ids)},
}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kind", MASKS)
def test_moments_are_those_without_padding(kind, left):
    model = Tagger()
    layers = dense_layers(model)
    expected = collect_moments(model, layers, plain(), loss=DefaultLoss(model), inputs=["down"])
    batches = []
    for ids in plain():
        ids, kept = padded(ids, left)
        batches.append({"input_ids": ids, **MASKS[kind](ids, kept)})
    moments = collect_moments(model, layers, batches, loss=DefaultLoss(model), inputs=["down"])
    for name in layers:
        assert moments[name].rows == expected[name].rows == 2 * 3 * LENGTH
        torch.testing.assert_close(moments[name].activations, expected[name].activations)
        torch.testing.assert_close(moments[name].gradients, expected[name].gradients)
        assert moments[name].input_power == pytest.approx(expected[name].input_power)
        assert moments[name].gradient_power == pytest.approx(expected[name].gradient_power)


def test_masks_given_by_position():
    ids, kept = padded(plain()[0], left=False)
    model = Tagger()
    assert list(arguments_of(model, (ids, kept))) == ["input_ids", "attention_mask"]
    moments = collect_moments(model, {"up": model.up}, [(ids, kept)])
    assert moments["up"].rows == 3 * LENGTH


def test_batches_that_are_all_padding(caplog):
    model = Tagger()
    ids = plain()[0]
    nothing = {"input_ids": ids, "attention_mask": torch.zeros_like(ids)}
    report = mpo.compress(model, 0.8, calibration=[ids, nothing], dry_run=True)
    assert {layer.rows for layer in report.layers} == {3 * LENGTH}
    assert "1 of 2 calibration batches are masked entirely" in caplog.text
    with pytest.raises(MPOError, match="the masks of all 2 calibration batches leave no position"):
        mpo.compress(model, 0.8, calibration=[nothing] * 2)


def test_sequences_that_are_all_padding_count_nowhere():
    masks = Masks(nn.Linear(3, 2), {"attention_mask": torch.tensor([[1, 1, 0], [0, 0, 0]])})
    assert masks.rows("up", (2, 8)).tolist() == [True, False]
    assert masks.rows("up", (6, 8)).tolist() == [True, True, False, False, False, False]
    assert masks.rows("up", (2, 7, 8)).tolist() == [True] * 7 + [False] * 7
    assert masks.rows("up", (2, 3, 4, 8)).view(2, 3, 4).all(-1).tolist() == [[True, True, False], [False] * 3]
    assert masks.rows("up", (2, 4, 3, 8)).view(2, 4, 3).any(1).tolist() == [[True, True, False], [False] * 3]
    assert masks.rows("up", (3, 2, 8)).view(3, 2).T.tolist() == [[True, True, False], [False] * 3]
    assert masks.rows("up", (5, 8)) is None
    assert unmasked_positions(torch.zeros(1, 1, 2, 2)).all()  # added to the scores, no padding


def test_each_stack_of_an_encoder_decoder_has_its_mask():
    """Encoder and decoder inputs of one length: the names of layers tell which mask counts."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    ids, kept = padded(torch.randint(1, 30, (3, LENGTH)), left=False)
    labels = torch.cat([torch.randint(1, 30, (3, 4)), torch.full((3, PADDED - 4), -100)], 1)
    batch = {"input_ids": ids, "attention_mask": kept, "labels": labels}
    layers = dense_layers(model)
    rows = {name: moments.rows for name, moments in collect_moments(model, layers, [batch]).items()}
    for name, count in rows.items():
        cross = "EncDecAttention" in name and name.rpartition(".")[2] in "kv"
        assert count == 3 * (LENGTH if name.startswith("encoder") or cross else 4), name
    report = mpo.compress(model, 0.8, calibration=[batch])
    assert report.loss == "cross-entropy of logits (30 classes)"


def test_labels_of_the_next_token_are_shifted():
    ids = torch.randint(1, 30, (1, 5))
    masks = Masks(nn.Identity(), {"labels": torch.tensor([[-100, -100, 7, 8, 9]]), "attention_mask": torch.ones(1, 5)})
    assert masks.predictions((1, 5, 30), next_token=True).tolist() == [False, True, True, True, False]
    assert masks.predictions((1, 5, 30), next_token=False).tolist() == [False, False, True, True, True]
    assert masks.rows("up", (*ids.shape, 4)) is None  # a prompt without labels is data
