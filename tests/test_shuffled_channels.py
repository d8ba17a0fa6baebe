"""The benchmark's model with channels in a random order computes what the model computes."""

from __future__ import annotations

import torch
import transformers
from shuffled_channels import shuffle
from tiny import write_model


def test_it_computes_the_same_with_other_weights(tmp_path):
    for tied in (True, False):
        folder = write_model(tmp_path / f"{tied}", tied=tied)
        model, shuffled = (transformers.AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
        shuffle(shuffled, seed=1)
        ids = torch.arange(20)[None]
        with torch.no_grad():
            torch.testing.assert_close(shuffled(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
        moved = [
            name
            for (name, before), after in zip(model.named_parameters(), shuffled.parameters(), strict=True)
            if not torch.equal(before, after)
        ]
        assert {name.split(".")[-2] for name in moved} >= {"q_proj", "o_proj", "v_proj", "down_proj", "gate_proj"}
