"""Tied tensors in checkpoints and training states: the same object or the same view, and nothing else."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save
from torch import nn

import mpochain as mpo
from mpochain.checkpoint.saving import distinct_tensors
from mpochain.compression.sharing import shared_modules
from mpochain.errors import ArgumentError
from mpochain.surgery.tying import address_of, ties_of, view_of
from mpochain.train import TrainConfig, train
from mpochain.train.stored import checksum, read_state


class Wrapped(torch.Tensor):
    """A tensor that wraps another one and has no memory of its own, as shards and quantised weights do."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        def unwrapped(value):
            return value.inner if isinstance(value, cls) else value

        result = function(*map(unwrapped, arguments), **(options or {}))
        return cls(result) if isinstance(result, torch.Tensor) else result


class Holder(nn.Module):
    """A module with any parameters and buffers."""

    def __init__(self, parameters=None, buffers=None):
        super().__init__()
        for name, value in (parameters or {}).items():
            self.register_parameter(name, value if isinstance(value, nn.Parameter) else nn.Parameter(value))
        for name, value in (buffers or {}).items():
            self.register_buffer(name, value)


def test_the_same_object_is_tied_wherever_its_numbers_are():
    for tensor in (torch.ones(2), torch.empty(0, 2), torch.empty(2, device="meta"), Wrapped(torch.ones(2))):
        one = nn.Parameter(tensor)
        assert ties_of(nn.Sequential(Holder({"a": one}), Holder({"b": one}))) == {"1.b": "0.a"}
        assert ties_of(Holder(buffers={"a": tensor, "b": tensor})) == {"b": "a"}


def test_tensors_without_an_address_are_not_tied():
    for make in (lambda: torch.empty(0, 2), lambda: torch.empty(2, device="meta"), lambda: Wrapped(torch.ones(2))):
        assert make().data_ptr() == 0
        assert ties_of(Holder({"a": make(), "b": make()}, {"c": make(), "d": make()})) == {}
        assert address_of(make()) is None


def test_views_of_one_storage_are_tied_if_they_are_the_same_view():
    table = torch.arange(16.0).view(4, 4)
    same = Holder({"a": table, "b": table.view(4, 4)}, {"c": table[:2], "d": table[:2]})
    assert ties_of(same) == {"b": "a", "d": "c"}
    others = {"a": table, "b": table.T, "c": table.view(16), "d": table[2:], "e": table.view(torch.int32)}
    assert ties_of(Holder(buffers=others)) == {}
    assert len({view_of(value) for value in others.values()}) == 5


def test_views_keep_their_numbers_in_a_checkpoint(tmp_path):
    table = torch.arange(16.0).view(4, 4)
    holder = Holder({"w": table.clone()}, {"c": table, "d": table.T, "e": table[2:], "f": table[2:]})
    holder.layer = mpo.MPOLinear(4, 4, max_bond=2)
    assert distinct_tensors(holder)[1] == {"f": "e"}
    fresh = Holder({"w": torch.zeros(4, 4)}, {name: torch.zeros_like(holder.get_buffer(name)) for name in "cdef"})
    fresh.layer = mpo.MPOLinear(4, 4, max_bond=2)
    loaded = mpo.load(mpo.save(holder, tmp_path), fresh)
    for name, value in holder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    with pytest.raises(ArgumentError, match="share memory in part"):
        mpo.save(Holder({"a": table, "b": table[2:]}), tmp_path / "other")


def test_modules_that_share_nothing_but_a_missing_address():
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False, device="meta") for _ in range(2)))
    for layer in (nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)):
        layer.weight = nn.Parameter(Wrapped(torch.ones(2, 2)))
        model.append(layer)
    assert shared_modules(model) == {}
    model[3].weight = model[2].weight
    assert shared_modules(model) == {model[2]: "3", model[3]: "2"}


def test_a_training_state_has_a_tied_tensor_once_and_resumes_where_it_was_written_twice(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight
            self.empty = self.other = nn.Parameter(torch.empty(0))

        def forward(self, x):
            return self.second(torch.tanh(self.first(x))).square().mean() + self.empty.sum()

    def run(steps, model=None):
        config = TrainConfig(steps=4, warmup_steps=1, checkpoint_every=1)
        model = model or Tied()

        def sample(generator, step):
            if step == steps:
                raise InterruptedError
            return torch.randn(5, 3, generator=generator)

        train(model, sample, lambda net, x: net(x), config, tokens=len, checkpoint=tmp_path / f"state-{steps}")
        return model

    with pytest.raises(InterruptedError):
        run(2)
    record, stored = read_state(tmp_path / "state-2")
    tensors = dict(stored.tensors)
    names = {name for name in tensors if name.startswith("model.")}
    assert names == {"model.first.weight", "model.first.bias", "model.second.bias", "model.empty"}
    tensors["model.other"] = torch.empty(0)
    metadata = {"format": "mpochain-training", "version": "2", "record": json.dumps(record)}
    metadata["sha256"] = checksum(tensors, metadata["record"])
    (tmp_path / "state-4").write_bytes(save(tensors, metadata=metadata))
    again, complete = run(4), run(5)
    for value, expected in zip(again.parameters(), complete.parameters(), strict=True):
        assert torch.equal(value, expected)
