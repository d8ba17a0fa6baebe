"""What a checkpoint cannot hold: refused before anything is written, with what to do; what it can, is not refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain import MPOLinear
from mpochain.errors import ArgumentError


class Net(nn.Module):
    """A compressed layer beside something else."""

    def __init__(self, **buffers):
        super().__init__()
        self.up = MPOLinear(8, 8, max_bond=2)
        for name, value in buffers.items():
            self.register_buffer(name, value)


class Stateful(Net):
    def __init__(self, state):
        super().__init__()
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def _parameter(value):
    net = Net()
    net.more = nn.Parameter(value, requires_grad=value.is_floating_point())
    return net


def _overlapping():
    net, table = Net(), torch.randn(10, 4)
    net.a, net.b = nn.Parameter(table[:6]), nn.Parameter(table[3:])
    return net


def _transposed():
    net, table = Net(), torch.randn(4, 4)
    net.a, net.b = nn.Parameter(table), nn.Parameter(table.T)
    return net


REFUSED = {
    "extra state": (lambda: Stateful({"step": 1}), "_extra_state is a dict.*cannot hold; .*outside of the model"),
    "meta": (lambda: _parameter(torch.empty(2, device="meta")), "more is on the meta device"),
    "sparse": (lambda: Net(more=torch.eye(3).to_sparse()), "more has the layout torch.sparse_coo.*ordinary tensor"),
    "complex128": (
        lambda: _parameter(torch.ones(2, dtype=torch.complex128)),
        "more has elements of type",
    ),
    "overlapping parameters": (_overlapping, "a and b share memory in part.*clone"),
    "transposed parameters": (_transposed, "a and b share memory in part"),
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_before_anything_is_written(make, words, tmp_path):
    with pytest.raises(ArgumentError, match=words):
        mpo.save(make(), tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def _views():
    table = torch.arange(40.0).reshape(10, 4)
    return Net(a=table[:6], b=table[3:], c=table, d=table.T, e=table[8:])


HELD = {
    "overlapping buffers": _views,
    "expanded": lambda: Net(a=torch.arange(3.0).expand(4, 3), b=torch.zeros(1).expand(7)),
    "parts of one tensor": lambda: Net(**dict(zip("qkv", torch.arange(12.0).chunk(3), strict=True))),
    "extra state that is a tensor": lambda: Stateful(torch.tensor([3.0])),
}


@pytest.mark.parametrize("make", HELD.values(), ids=HELD)
def test_it_is_held(make, tmp_path):
    net = make()
    loaded = mpo.load(mpo.save(net, tmp_path), make())
    for name, value in net.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
