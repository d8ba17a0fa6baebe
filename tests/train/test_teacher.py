"""Teachers: attention maps, trainable parameters, and the cache of logits on disk."""

from __future__ import annotations

import copy
import errno
import json
import math
import os

import pytest
import torch
import transformers
from torch import nn

from mpochain import MPOError
from mpochain.train import FinetuneConfig, finetune
from mpochain.train.attention import attention_loss, attention_maps
from mpochain.train.teacher import TeacherCache
from mpochain.train.windows import Windows

V = 23
CONFIG = FinetuneConfig(steps=6, batch_size=4, warmup_steps=2, learning_rate=1e-2, checkpoint_every=1)


def gpt2(seed=0, scale=4.0, **changes):
    torch.manual_seed(seed)
    settings = {"vocab_size": V, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    settings |= {**dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0), **changes}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def windows(count=12, seed=1):
    return torch.randint(V, (count, 12), generator=torch.Generator().manual_seed(seed))


class TestAttention:
    def test_it_is_the_divergence(self):
        torch.manual_seed(0)
        p, q = (torch.randn(2, 3, 5, 5, dtype=torch.float64).softmax(-1) for _ in range(2))
        labels = torch.randint(9, (2, 5))
        labels[0, 2:] = -100
        labelled = (labels != -100)[:, None].expand(2, 3, 5)
        expected = nn.functional.kl_div(q.log(), p, reduction="none").sum(-1)[labelled].mean()
        torch.testing.assert_close(attention_loss([q], [p], labels), expected)
        torch.testing.assert_close(attention_loss([q, p], [p, p], labels), expected / 2)

    def test_gradients(self):
        torch.manual_seed(0)
        p = torch.randn(1, 2, 4, 4, dtype=torch.float64).softmax(-1)
        x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
        labels = torch.tensor([[1, 2, 3, -100]])
        assert torch.autograd.gradcheck(lambda x: attention_loss([x.softmax(-1)], [p], labels), x)

    def test_masked_entries_do_not_count(self):
        p = torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])
        q = torch.tensor([[[[1.0, 0.0], [0.75, 0.25]]]])
        loss = attention_loss([q], [p], torch.tensor([[1, 2]]))
        expected = (0.25 * math.log(1 / 3) + 0.75 * math.log(3)) / 2
        assert loss.item() == pytest.approx(expected, rel=1e-5)

    def test_a_model_learns_the_attention_of_its_teacher(self):
        dense, model = gpt2(0), gpt2(1)

        def distance():
            with torch.no_grad(), attention_maps(dense, model):
                outputs = [network(windows(seed=2), output_attentions=True).attentions for network in (model, dense)]
                return attention_loss(*outputs, windows(seed=2)).item()

        before, kinds = distance(), [network.config._attn_implementation for network in (dense, model)]
        config = CONFIG.model_copy(update={"steps": 60, "distillation": 0.0, "attention": 20.0})
        result = finetune(model, windows(), config=config, teacher=dense)
        assert distance() < 0.8 * before
        assert result.losses[-1] < result.losses[0]
        assert kinds == [network.config._attn_implementation for network in (dense, model)] == ["sdpa", "sdpa"]

    def test_dropout_on_attention_is_off_while_maps_are_compared(self):
        dense = gpt2(attn_pdrop=0.5)
        model = copy.deepcopy(dense)
        config = CONFIG.model_copy(update={"steps": 2, "distillation": 0.0, "attention": 1.0, "learning_rate": 1e-12})
        with_attention = finetune(model, windows(), config=config, teacher=dense).losses
        model.config.attn_pdrop = 0.0
        for block in model.transformer.h:
            assert block.attn.attn_dropout.p == 0.5
            block.attn.attn_dropout.p = 0.0
        without = finetune(model, windows(), config=config.model_copy(update={"attention": 0.0})).losses
        assert with_attention == pytest.approx(without, abs=1e-4)

    def test_models_of_one_configuration(self):
        dense = gpt2()
        with attention_maps(dense, transformers.GPT2LMHeadModel(dense.config)):
            assert dense.config._attn_implementation == "eager"
        assert dense.config._attn_implementation == "sdpa"

    def test_models_that_cannot_be_compared(self):
        config = CONFIG.model_copy(update={"attention": 1.0})
        plain = nn.Sequential(nn.Embedding(V, 8), nn.Linear(8, V))
        with pytest.raises(MPOError, match="Sequential cannot return"):
            finetune(plain, windows(), config=config, teacher=copy.deepcopy(plain))
        with pytest.raises(MPOError, match=r"attention=1\.0 need a teacher"):
            finetune(gpt2(), windows(), config=config.model_copy(update={"distillation": 0.0}))
        with pytest.raises(MPOError, match="do not match"):
            finetune(gpt2(), windows(), config=config, teacher=gpt2(n_head=4))
        with pytest.raises(MPOError, match="no position has a label"):
            attention_loss([torch.ones(1, 1, 2, 2)], [torch.ones(1, 1, 2, 2)], torch.full((1, 2), -100))


class TestTrainable:
    def test_only_what_is_named_learns(self):
        model = gpt2()
        before = copy.deepcopy(model.state_dict())
        config = CONFIG.model_copy(update={"trainable": ("transformer.h.0.mlp", r"re:.*ln_f\.weight")})
        finetune(model, windows(), config=config)
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {
            "transformer.ln_f.weight",
            *(f"transformer.h.0.mlp.{layer}.{kind}" for layer in ("c_fc", "c_proj") for kind in ("weight", "bias")),
        }
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_a_tied_name_is_known(self):
        model = gpt2()
        before = model.lm_head.weight.detach().clone()
        finetune(model, windows(), config=CONFIG.model_copy(update={"trainable": ("lm_head",)}))
        assert not torch.equal(model.transformer.wte.weight, before)

    @pytest.mark.parametrize(
        ("name", "message"),
        [("transformer.h.7", "similar names: transformer"), ("re:(", "is not a regular expression")],
    )
    def test_unknown_names(self, name, message):
        with pytest.raises(MPOError, match=message):
            finetune(gpt2(), windows(), config=CONFIG.model_copy(update={"trainable": (name,)}))


class TestCache:
    def test_the_teacher_runs_once_per_window(self, tmp_path):
        dense, runs = gpt2(), []
        dense.register_forward_hook(lambda _module, _arguments, output: runs.append(len(output.logits)))
        models = [gpt2(1, scale=2.0) for _ in range(3)]
        config = CONFIG.model_copy(update={"batch_size": 5})  # no divisor of the 12 windows
        plain = finetune(models[0], windows(), config=config, teacher=dense).losses
        assert sum(runs) == 1 + 6 * 5
        runs.clear()
        first = finetune(models[1], windows(), config=config, teacher=dense, teacher_cache=tmp_path).losses
        assert sum(runs) == 1 + 12  # two epochs and a half of 12 windows, and one to check the model
        runs.clear()
        second = finetune(models[2], windows(), config=config, teacher=dense, teacher_cache=tmp_path).losses
        assert sum(runs) == 1
        assert first == second != plain
        assert first == pytest.approx(plain, rel=1e-3)
        assert (tmp_path / "logits.f16").stat().st_size == 2 * 12 * 12 * V

    def test_cached_logits_are_those_of_the_teacher(self, tmp_path):
        data = Windows.of(windows(4))
        cache = TeacherCache(tmp_path, data, V, {})
        torch.manual_seed(0)
        logits = 30 * torch.randn(2, 12, V)
        indices = torch.tensor([3, 1])
        assert cache.missing(indices).tolist() == [0, 1]
        cache.put(indices, logits)
        cached = cache.get(indices)
        assert cache.missing(torch.tensor([1, 0, 3, 2])).tolist() == [1, 3]
        torch.testing.assert_close(cached.float().softmax(-1), logits.softmax(-1), atol=2e-3, rtol=2e-2)
        again = TeacherCache(tmp_path, data, V, {})
        assert torch.equal(again.get(torch.tensor([1])), cached[1:])

    def test_another_teacher_or_text_is_refused(self, tmp_path):
        finetune(gpt2(1), windows(), config=CONFIG, teacher=gpt2(), teacher_cache=tmp_path)
        for teacher, data in ((gpt2(2), windows()), (gpt2(), windows(seed=3))):
            with pytest.raises(MPOError, match="the logits of another teacher"):
                finetune(gpt2(1), data, config=CONFIG, teacher=teacher, teacher_cache=tmp_path)

    def test_damage_is_reported(self, tmp_path):
        data = Windows.of(windows(4))
        TeacherCache(tmp_path, data, V, {})
        with (tmp_path / "logits.f16").open("r+b") as file:
            file.truncate(10)
        with pytest.raises(MPOError, match="is damaged: its files"):
            TeacherCache(tmp_path, data, V, {})
        (tmp_path / "teacher.json").write_text("{")
        with pytest.raises(MPOError, match="is damaged: teacher.json"):
            TeacherCache(tmp_path, data, V, {})

    def test_damaged_logits_are_missing(self, tmp_path):
        data, indices = Windows.of(windows(4)), torch.tensor([0, 1, 2])
        TeacherCache(tmp_path, data, V, {}).put(indices, torch.randn(3, 12, V))
        content = bytearray((tmp_path / "logits.f16").read_bytes())
        content[2 * 12 * V] ^= 1  # the first byte of the second window
        (tmp_path / "logits.f16").write_bytes(content)
        assert TeacherCache(tmp_path, data, V, {}).missing(indices).tolist() == [1]
        assert [file.name for file in tmp_path.iterdir() if file.name[0] == "."] == []

    def test_a_disk_that_fills_up(self, tmp_path, monkeypatch):
        cache = TeacherCache(tmp_path, Windows.of(windows(4)), V, {})

        def full(descriptor, content, offset):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(MPOError, match="No space left on device; free some space"):
            cache.put(torch.tensor([0]), torch.zeros(1, 12, V))
        assert cache.missing(torch.tensor([0])).tolist() == [0]

    def test_a_full_disk(self, tmp_path):
        with pytest.raises(MPOError, match="more than the free space on the disk of"):
            TeacherCache(tmp_path, Windows.of(windows(4)), 1 << 50, {})
        assert not (tmp_path / "teacher.json").exists()

    def test_a_cache_that_would_not_be_used(self, tmp_path):
        with pytest.raises(MPOError, match="there is no teacher"):
            finetune(gpt2(1), windows(), config=CONFIG, teacher_cache=tmp_path)
        config = CONFIG.model_copy(update={"attention": 1.0})
        with pytest.raises(MPOError, match="need the teacher at every step"):
            finetune(gpt2(1), windows(), config=config, teacher=gpt2(), teacher_cache=tmp_path)

    def test_a_run_does_not_resume_with_and_without_a_cache(self, tmp_path):
        state = tmp_path / "state"
        finetune(gpt2(1), windows(), config=CONFIG, teacher=gpt2(), teacher_cache=tmp_path / "cache", checkpoint=state)
        assert json.loads((tmp_path / "cache" / "teacher.json").read_text())["shape"] == [12, 12, V]
        with pytest.raises(MPOError, match="teacher_cache"):
            finetune(gpt2(1), windows(), config=CONFIG, teacher=gpt2(), checkpoint=state)
