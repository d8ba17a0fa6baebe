"""An embedding held as a chain gives the rows of its dense table, however it is asked, and stays tied to its head."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import CHAINS, COLUMNS, WORDS, made
from torch import nn

import mpochain as mpo
from mpochain import ChainSpec, MPOEmbedding, MPOError, MPOLinear
from mpochain.nn.kinds import layer_of as layer_of_entry
from mpochain.surgery import learning_rate_scales, tied_head
from mpochain.surgery.tying import tied_linears
from mpochain.train import parameter_groups

dims = st.lists(st.integers(1, 4), min_size=3, max_size=3)


@given(dims, dims, st.integers(1, 3), st.integers(0, 5), st.integers(0, 2**16))
def test_any_chain_is_looked_up_like_its_matrix(out_dims, in_dims, bond, padding, seed):
    torch.manual_seed(seed)
    rows = max(out_dims[0] * out_dims[1] * out_dims[2] - padding, 1)
    spec = ChainSpec(out_dims, in_dims, bond, out_features=rows)
    embedding = MPOEmbedding(rows, spec.in_features, spec=spec, dtype=torch.float64)
    ids = torch.randint(rows, (7,))
    torch.testing.assert_close(embedding(ids), embedding.weight[ids])


def test_fast_execution_is_never_old():
    embedding, ids = made("permuted").set_execution(cache=True), torch.arange(WORDS)
    with torch.no_grad():
        before = embedding(ids)
        assert embedding._kept._entry[2].shape == (WORDS, 8)
        embedding.table.inner.core_0_0.add_(1)
        torch.testing.assert_close(embedding(ids), embedding.weight)
        assert not torch.equal(embedding(ids), before)


def test_its_variance_is_that_of_a_dense_embedding():
    torch.manual_seed(0)
    assert 0.8 < MPOEmbedding(400, 300, max_bond=8).weight.std().item() < 1.2
    embedding = MPOEmbedding(400, 300, max_bond=8)
    embedding.reset_parameters(0.02)
    assert 0.015 < embedding.weight.std().item() < 0.025


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_of_all_kinds(cache, dtype):
    embedding = made("chain").set_execution(cache=cache)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(embedding(torch.arange(5).to(dtype)), made("chain")(torch.arange(5)))


def test_compile_and_export():
    embedding, ids = made("both orders"), torch.arange(6)
    torch._dynamo.reset()
    compiled = torch.compile(embedding, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), embedding(ids))
    program = torch.export.export(embedding, (ids,), dynamic_shapes={"input": {0: torch.export.Dim.DYNAMIC}})
    torch.testing.assert_close(program.module()(ids[:4]), embedding(ids[:4]))


def test_from_a_dense_embedding():
    dense = nn.Embedding(12, 8, padding_idx=2)
    chain = MPOEmbedding.from_embedding(dense, ChainSpec((3, 4), (2, 4)))
    torch.testing.assert_close(chain.weight, dense.weight)
    assert chain.padding_idx == 2
    frozen = MPOEmbedding.from_embedding(dense.requires_grad_(False).eval(), ChainSpec((3, 4), (2, 4)))
    assert not any(each.requires_grad for each in frozen.parameters())
    assert not frozen.training
    back = chain.to_embedding()
    assert back.padding_idx == 2
    assert back.weight.requires_grad
    torch.testing.assert_close(back.weight, dense.weight)


@pytest.mark.parametrize("form", CHAINS)
def test_what_handles_layers_handles_embeddings(form, tmp_path):
    embedding = made(form)
    rows, width = embedding.num_embeddings, embedding.embedding_dim
    ids = torch.arange(rows)
    assert torch.equal(copy.deepcopy(embedding)(ids), embedding(ids))
    assert mpo.set_execution(nn.Sequential(embedding), cache=False) == 1
    assert f"MPOEmbedding(\n  {rows}, {width}" in repr(embedding)
    assert embedding.macs() > 0
    empty = layer_of_entry(embedding.entry().model_dump(), (rows, width), "words")
    assert {each.device.type for each in empty.state_dict().values()} == {"meta"}
    model = nn.Sequential(embedding, tied_head(embedding))
    with torch.device("meta"):
        architecture = nn.Sequential(nn.Embedding(rows, width), nn.Linear(width, rows, bias=False))
    mpo.save(model, tmp_path)
    loaded = mpo.load(tmp_path, architecture)
    torch.testing.assert_close(loaded(ids), model(ids))
    cores = list(loaded[0].parameters())
    assert all(mine is theirs for mine, theirs in zip(cores, loaded[1].parameters(), strict=True))
    stored = sum(each.numel() for each in cores)
    assert sum(each.numel() for each in loaded.parameters()) == stored == sum(p.numel() for p in embedding.parameters())
    dense = mpo.to_dense(loaded)
    assert [type(each) for each in dense] == [nn.Embedding, nn.Linear]
    assert dense[0].weight is dense[1].weight
    torch.testing.assert_close(dense(ids), model(ids))


def test_cores_of_rows_learn_by_their_bond():
    embedding = made("chain")
    model = nn.ModuleDict({"words": embedding, "head": tied_head(embedding), "up": MPOLinear(6, 8, max_bond=2)})
    scales = learning_rate_scales(model)
    assert scales["words.table.core_0_0"] == 1 / 3
    assert scales["words.table.core_0_1"] == 1
    assert scales["up.core_0_0"] > 1
    groups = parameter_groups(model, 1e-3)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_which_heads_are_tied():
    embedding, head, other = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False), nn.Linear(4, 9)
    head.weight = embedding.weight
    model = nn.ModuleDict({"words": embedding, "head": head, "other": other})
    assert tied_linears(model, [embedding, other]) == {head: embedding}
    other.weight = embedding.weight
    with pytest.raises(MPOError, match="other shares the table"):
        tied_linears(model, [embedding])

    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 10

    model["other"] = Scaled(4, 9, bias=False)
    model["other"].weight = embedding.weight
    with pytest.raises(MPOError, match="got Scaled"):
        tied_linears(model, [embedding])
    model["other"] = nn.Embedding(9, 4)
    model["other"].weight = embedding.weight
    with pytest.raises(MPOError, match="got Embedding"):
        tied_linears(model, [embedding])


@pytest.mark.parametrize("count", [3, 100])
def test_indices_beside_the_table(count):
    embedding = made("chain")
    assert embedding.table.spec.padded_shape[0] > WORDS
    for wrong in (WORDS, -1, 10**6):
        ids = torch.zeros(count, dtype=torch.long)
        ids[1] = wrong
        with pytest.raises(IndexError, match=f"rows 0 to 29, got {wrong}"):
            embedding(ids)


def test_what_is_no_embedding():
    with pytest.raises(MPOError, match="takes integers"):
        made("chain")(torch.zeros(2))
    with pytest.raises(MPOError, match="padding_idx must be one of the"):
        made("chain", padding_idx=WORDS)
    with pytest.raises(MPOError, match="got InterpolativeLinear"):
        MPOEmbedding.of(mpo.InterpolativeLinear(4, 6, 2, bias=False))
    with pytest.raises(MPOError, match="must have no bias"):
        MPOEmbedding.of(MPOLinear(4, 6, max_bond=2))
    with pytest.raises(MPOError, match="expected torch.nn.Embedding"):
        MPOEmbedding.from_embedding(nn.Linear(4, 6), ChainSpec((3, 2), (2, 2)))
    with pytest.raises(MPOError, match="max_norm"):
        MPOEmbedding.from_embedding(nn.Embedding(6, 4, max_norm=1.0), ChainSpec((3, 2), (2, 2)))

    class Scaled(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) * 2

    with pytest.raises(MPOError, match="its own forward"):
        MPOEmbedding.from_embedding(Scaled(6, 4), ChainSpec((3, 2), (2, 2)))


def test_a_file_that_puts_an_embedding_elsewhere_is_refused(tmp_path):
    mpo.save(nn.Sequential(made("chain")), tmp_path)
    with torch.device("meta"):
        architecture = nn.Sequential(nn.Linear(COLUMNS, WORDS))
    with pytest.raises(MPOError, match="MPOEmbedding in place of a Linear"):
        mpo.load(tmp_path, architecture)
    description = {**made("chain").entry().model_dump(), "padding": 99}
    with pytest.raises(MPOError, match="words: padding_idx must be one of the"):
        layer_of_entry(description, (WORDS, COLUMNS), "words")
