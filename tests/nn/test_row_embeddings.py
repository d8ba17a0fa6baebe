"""Every embedding whose table is not held gives the rows of the table that its parameters make, however it is asked."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import ALL, COLUMNS, ROWS, WORDS, dense_table, index_of, made
from torch import nn

import mpochain as mpo
from mpochain import EntangledEmbedding, MPOError, TokenTrainEmbedding
from mpochain.nn import RowLinear
from mpochain.nn.embeddings import head as head_module
from mpochain.nn.embeddings import rows as rows_module
from mpochain.nn.kinds import layer_of as layer_of_entry
from mpochain.surgery import tied_head
from mpochain.surgery.finding import compressed_layers


@pytest.mark.parametrize("form", ALL)
def test_the_table_is_the_one_of_the_formula(form):
    embedding = made(form)
    torch.testing.assert_close(embedding.weight, dense_table(embedding))
    with torch.no_grad():
        torch.testing.assert_close(embedding.weight, dense_table(embedding))
    for name, index in embedding.indices().items():
        index.require_valid(name)


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (9, 40)])
@pytest.mark.parametrize("cache", [False, True])
def test_rows_and_gradients_are_those_of_the_dense_table(form, shape, cache):
    embedding = made(form).set_execution(cache=cache)
    assert embedding.cache == cache
    ids = torch.randint(WORDS, shape)
    for distinct in (ids, ids % 2):
        expected = nn.functional.embedding(distinct, dense_table(embedding))
        rows = embedding(distinct)
        torch.testing.assert_close(rows, expected)
        with torch.no_grad():
            torch.testing.assert_close(embedding(distinct.int()), expected)
        weights = torch.randn_like(expected)
        parameters = list(embedding.parameters())
        for mine, theirs in zip(
            torch.autograd.grad((rows * weights).sum(), parameters),
            torch.autograd.grad((expected * weights).sum(), parameters),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("few", [1, 2, 30])
def test_tiles_of_any_size_make_the_same_rows(form, few, monkeypatch):
    embedding = made(form)
    expected = embedding.weight.detach()
    monkeypatch.setattr(rows_module, "_SCRATCH", 100 * few)
    with torch.no_grad():
        for ids in (torch.randint(WORDS, (7, 30)), torch.randint(3, (90,)), torch.randperm(WORDS).repeat(3)):
            torch.testing.assert_close(embedding(ids), expected[ids])


def test_repeated_words_are_made_once(monkeypatch):
    embedding, seen = made("SEE"), []
    maker = embedding.maker
    monkeypatch.setattr(embedding, "maker", lambda ids: seen.append(ids) or maker(ids))
    ids = torch.randint(2, (40, 40))
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            embedding(ids)
        assert [sorted(each.tolist()) for each in seen] == [[0, 1]]
        seen.clear()


@given(st.integers(1, 40), st.integers(1, 20), st.integers(2, 4), st.integers(1, 3), st.integers(0, 2**16))
def test_word2ketxs_is_of_any_size(words, columns, order, ranks, seed):
    torch.manual_seed(seed)
    embedding = EntangledEmbedding(words, columns, order=order, ranks=ranks, dtype=torch.float64)
    base, dim = embedding.unit_count, embedding.dims[0]
    assert (base - 1) ** order < words <= base**order
    assert (dim - 1) ** order < columns <= dim**order
    assert sum(each.numel() for each in embedding.parameters()) == ranks * order * base * dim
    torch.testing.assert_close(embedding.weight, dense_table(embedding))


def test_parameters_are_those_of_the_formulas():
    def count(module):
        return sum(each.numel() for each in module.parameters())

    assert count(EntangledEmbedding(30_000, 256, order=4)) == 224
    assert count(EntangledEmbedding(30_000, 256, order=2, ranks=10)) == 10 * 2 * 174 * 16
    assert count(EntangledEmbedding(30_000, 256, order=4, units="own")) == 30_000 * 4 * 4
    units = torch.zeros(30_000, 3, dtype=torch.int64)
    assert count(EntangledEmbedding(30_000, 512, units=units, unit_count=2000, ranks=7)) == 7 * 2000 * 8
    see = EntangledEmbedding(30_000, 512, units=units, unit_count=2000, ranks=7, coefficients=True, norm=True)
    assert count(see) == 7 * 2000 * 8 + 7 * 30_000 + 2 * 512
    assert count(TokenTrainEmbedding(1000, 512, max_bond=2, dims=(8, 8, 8))) == 1000 * (8 * 2 + 2 * 8 * 2 + 2 * 8)


@pytest.mark.parametrize("form", ["word2ketXS", "word2ketXS, even", "word2ket", "tokens"])
def test_its_variance_is_that_of_a_dense_embedding(form):
    found = []
    for seed in range(60):
        embedding = made(form, torch.float32)
        torch.manual_seed(seed)
        embedding.reset_parameters()
        found.append(embedding.weight.square().mean())
        embedding.reset_parameters(0.02)
        found.append(embedding.weight.square().mean() / 0.02**2)
    assert 0.8 < torch.stack(found).mean().item() < 1.25


def test_normalised_rows_have_the_deviation_that_is_asked_for():
    embedding = made("MorphTE")
    embedding.reset_parameters(0.1)
    deviations = embedding.weight.var(1, unbiased=False).sqrt()
    assert ((deviations > 0.09) & (deviations <= 0.1)).float().mean() > 0.8  # the rest are rows of hardly any size


@pytest.mark.parametrize("form", ALL)
def test_padding_rows_autocast_and_copies(form):
    embedding = made(form, padding_idx=-1)
    assert embedding.padding_idx == WORDS - 1
    embedding(torch.full((80,), WORDS - 1)).sum().backward()
    assert not any(each.grad.any() for each in embedding.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert embedding(torch.arange(3)).dtype == torch.float64
    other = copy.deepcopy(embedding)
    torch.testing.assert_close(other.weight, embedding.weight, rtol=0, atol=0)
    dense = embedding.to_embedding()
    assert dense.padding_idx == WORDS - 1
    torch.testing.assert_close(dense.weight, embedding.weight)
    assert embedding.macs() > 0
    assert f"{WORDS}, {embedding.embedding_dim}, padding_idx={WORDS - 1}" in repr(embedding)


@pytest.mark.parametrize("form", ALL)
def test_a_tied_head_learns_with_it(form):
    embedding = made(form)
    head = tied_head(embedding)
    assert isinstance(head, RowLinear) is (form in ROWS)
    assert head.bias is None
    assert {id(each) for each in head.parameters()} == {id(each) for each in embedding.parameters()}
    x = torch.randn(3, embedding.embedding_dim, dtype=torch.float64)
    expected = x @ dense_table(embedding).T
    torch.testing.assert_close(head(x), expected)
    for cache in (False, True):
        head.set_execution(cache=cache)
        with torch.no_grad():
            torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head.to_linear()(x), expected)
    with pytest.raises(MPOError, match=r"expected \(..., \d+\)"):
        head(x[:, :-1])


@pytest.mark.parametrize("form", ["SEE", "MorphTE", "tokens"])
@pytest.mark.parametrize("cache", [False, True])
def test_a_head_in_parts_has_the_same_gradients(form, cache, monkeypatch):
    embedding = made(form)
    head = tied_head(embedding).set_execution(cache=cache)
    x = torch.randn(2, 3, embedding.embedding_dim, dtype=torch.float64, requires_grad=True)
    expected = x @ embedding.weight.T
    monkeypatch.setattr(head_module, "_AT_ONCE", 7 * embedding.scratch())
    torch.testing.assert_close(head(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(head(x), expected)
    weights, wanted = torch.randn_like(expected), [x, *embedding.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad((head(x) * weights).sum(), wanted),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("tied", [False, True])
def test_checkpoints_hold_it_and_its_head_once(form, tied, tmp_path):
    embedding = made(form, padding_idx=3)
    assert layer_of_entry(embedding.entry().model_dump(), None, "it").entry() == embedding.entry()
    columns = embedding.embedding_dim
    head = tied_head(embedding) if tied else nn.Linear(columns, WORDS, bias=False, dtype=torch.float64)
    model = nn.ModuleDict({"words": embedding, "head": head})
    mpo.save(model, tmp_path)
    with torch.device("meta"):
        plain = {"words": nn.Embedding(WORDS, columns), "head": nn.Linear(columns, WORDS, bias=False)}
        architecture = nn.ModuleDict(plain).double()
    again = mpo.load(tmp_path, architecture)
    torch.testing.assert_close(again["words"].weight, embedding.weight, rtol=0, atol=0)
    torch.testing.assert_close(again["head"].weight, head.weight, rtol=0, atol=0)
    assert again["words"].padding_idx == 3
    assert (next(again["head"].parameters()) is next(again["words"].parameters())) is tied
    assert again["words"].form() == embedding.form() != "dense"
    from mpochain.checkpoint import contents

    assert contents(tmp_path).parameters == sum(each.numel() for each in model.parameters())
    dense = mpo.to_dense(again)
    assert (dense["head"].weight is dense["words"].weight) is tied
    assert compressed_layers(dense) == {}


def test_a_hostile_index_is_refused(tmp_path):
    embedding = made("SEE")
    embedding.index[4, 1] = 9
    mpo.save(nn.Sequential(embedding), tmp_path)
    with torch.device("meta"):
        architecture = nn.Sequential(nn.Embedding(WORDS, COLUMNS, dtype=torch.float64))
    with pytest.raises(MPOError, match=r"0.index must hold indices from 0 to 8, got 9"):
        mpo.load(tmp_path, architecture)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": [2, 2]}, "expected 2 dims with a product of at least 10"),
        ({"unit_count": 2}, "30 words need 4 units"),
        ({"units": "mine"}, "units"),
        ({"ranks": 0}, "ranks"),
        ({"padding": 30}, "padding_idx must be one of the 30 rows"),
        ({"out_features": 31}, "is a 31x10 matrix"),
        ({"unit_count": 1 << 31, "ranks": 1 << 31}, "it: Storage size calculation overflowed"),
    ],
)
def test_descriptions_that_describe_none_are_refused(change, message):
    description = {**made("word2ketXS").entry().model_dump(), **change}
    with pytest.raises(MPOError, match=message):
        layer_of_entry(description, (WORDS, COLUMNS), "it")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "order must be at least 2, got None"),
        ({"order": 1}, "got 1"),
        ({"order": 2, "ranks": 0}, "ranks must be at least 1, got 0"),
        ({"order": 2, "units": "words"}, "'digits', 'own' or an index"),
        ({"order": 2, "dims": (3, 3)}, r"expected 2 dims with a product of at least 10, got \(3, 3\)"),
        ({"order": 2, "dims": (5, 2), "shared": True}, "cannot share a table; give shared=False"),
        ({"order": 2, "unit_count": 5}, "30 words need 6 units, got unit_count=5"),
        ({"order": 2, "units": "own", "unit_count": 40}, "needs unit_count=30, one per word, got unit_count=40"),
        ({"units": torch.zeros(29, 2, dtype=torch.int64)}, r"must have shape \(30, order\), got \(29, 2\)"),
        ({"units": torch.zeros(30, 2, dtype=torch.int64), "order": 3}, r"shape \(30, 3\), got \(30, 2\)"),
        ({"units": torch.zeros(30, 2)}, "must hold integers, got torch.float32"),
        ({"units": torch.full((30, 2), -1)}, r"units must be from 0 to 2\*\*31 - 1, got -1"),
        ({"units": torch.full((30, 2), 1 << 32)}, r"2\*\*31 - 1, got 4294967296"),
        ({"units": torch.full((30, 2), 7), "unit_count": 7}, "need 8 units, got unit_count=7"),
    ],
)
def test_arguments_that_fit_no_table_are_refused(arguments, message):
    with pytest.raises(MPOError, match=message):
        EntangledEmbedding(WORDS, COLUMNS, **arguments)


def test_wrong_tokens_and_trains_are_refused():
    for form in ("SEE", "tokens"):
        with pytest.raises(IndexError, match="rows 0 to 29, got 30"):
            made(form)(torch.tensor([30]))
        with pytest.raises(IndexError, match="got -1"):
            made(form)(torch.full((80,), -1))
        with pytest.raises(MPOError, match="takes integers, got torch.float32"):
            made(form)(torch.zeros(2))
        with pytest.raises(MPOError, match="'compact' or 'fast', got 'slow'"):
            made(form).set_execution(memory="slow")
    with pytest.raises(MPOError, match=r"one dim per site with a product of at least 12, got \(2, 3\)"):
        TokenTrainEmbedding(WORDS, 12, 2, dims=(2, 3))
    with pytest.raises(MPOError, match="max_bond must be at least 1, got 0"):
        TokenTrainEmbedding(WORDS, 12, 0)
    with pytest.raises(MPOError, match="at least one row and column, got 0x12"):
        TokenTrainEmbedding(0, 12, 2)


def test_the_index_is_a_copy_and_moves_along():
    units = index_of(2)
    embedding = EntangledEmbedding(WORDS, COLUMNS, units=units)
    before = embedding.weight.detach().clone()
    units.zero_()
    assert torch.equal(embedding.weight, before)
    assert embedding.to("meta").index.device.type == "meta"


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 9), st.integers(1, 5), st.integers(0, 2**16))
def test_trains_of_rows_are_as_near_as_tt_svd(dims, cut, bond, seed):
    torch.manual_seed(seed)
    columns = max(math.prod(dims) - cut, 1)
    dense = nn.Embedding(7, columns, dtype=torch.float64, padding_idx=2)
    train = TokenTrainEmbedding.from_embedding(dense, bond, dims=dims)
    assert train.padding_idx == 2
    for row, mine in zip(dense.weight.detach(), train.weight, strict=True):
        spec = mpo.ChainSpec((1,) * len(dims), dims, bond, in_features=columns)
        torch.testing.assert_close(mine[None], mpo.decompose(row[None], spec).to_matrix(), atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("columns", [1, 7, 10, 25, 97])
def test_trains_of_any_length(columns):
    dense = nn.Embedding(70, columns, dtype=torch.float64)
    train = TokenTrainEmbedding.from_embedding(dense, columns)  # all that a row can have
    torch.testing.assert_close(train(torch.arange(70)), dense.weight)
    with torch.no_grad():
        torch.testing.assert_close(train(torch.arange(70)), dense.weight)


def test_trains_of_rows_without_numbers_or_of_zeros():
    dense = nn.Embedding(3, 8)
    with torch.no_grad():
        dense.weight[1] = 0
    assert not TokenTrainEmbedding.from_embedding(dense, 1).weight[1].any()
    with torch.no_grad():
        dense.weight[1, 1] = math.nan
    with pytest.raises(MPOError, match="NaN or infinite"):
        TokenTrainEmbedding.from_embedding(dense, 1)


@pytest.mark.parametrize("form", ["chain", "word2ketXS", "tokens"])
def test_it_is_transformed_as_dense_embeddings_are(form):
    ids = torch.randint(WORDS, (80,))
    models = [made(form) for _ in range(2)]
    for each in models[1].parameters():
        each.data.mul_(2)
    parameters, buffers = torch.func.stack_module_state(models)
    both = torch.func.vmap(lambda p, b: torch.func.functional_call(models[0], (p, b), (ids,)))(parameters, buffers)
    torch.testing.assert_close(both, torch.stack([model(ids) for model in models]))
    own = {name: each.detach() for name, each in models[0].named_parameters()}
    many = ids.view(2, 40).repeat(1, 2)
    torch.testing.assert_close(torch.func.vmap(models[0])(many), models[0](many))
    each = torch.func.vmap(
        torch.func.grad(lambda p, some: torch.func.functional_call(models[0], p, (some,)).square().sum()), (None, 0)
    )(own, many)
    both = torch.func.grad(lambda p: torch.func.functional_call(models[0], p, (many,)).square().sum())(own)
    torch.testing.assert_close({name: each[name].sum(0) for name in each}, both)
    rows, change = torch.func.jvp(lambda p: torch.func.functional_call(models[0], p, (ids,)), (own,), (own,))
    torch.testing.assert_close(rows, models[0](ids))
    assert change.any()


@pytest.mark.parametrize("form", ["word2ketXS", "tokens"])
def test_its_table_compiles_whole(form):
    embedding = made(form)
    torch._dynamo.reset()
    whole = torch.compile(lambda: embedding.weight, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(whole(), embedding.weight)


@pytest.mark.parametrize("form", ["word2ketXS", "tokens"])
def test_tables_may_be_parametrised(form):
    embedding, ids = made(form), torch.arange(WORDS)
    name = "core_0" if form == "tokens" else "table_0"
    expected = 2 * embedding(ids)

    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    nn.utils.parametrize.register_parametrization(embedding, name, Twice())
    torch.testing.assert_close(embedding(ids), expected)


def test_tokens_that_come_again_are_found_in_large_tables_too():
    torch.manual_seed(0)
    embedding = EntangledEmbedding(5000, 6, order=2)
    ids = torch.randint(20, (100,)) * 250
    with torch.no_grad():
        torch.testing.assert_close(embedding(ids), embedding.weight[ids])
    distinct, places = embedding._distinct(ids)
    assert torch.equal(distinct[places], ids)
    assert len(distinct) == len(ids.unique())
    assert distinct[0] == ids[0], "in the order in which they come"


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.float32, "0.index of type F32"),
        (torch.bool, "0.index has elements of type BOOL, expected I32 or I64"),
        (torch.int64, "0.index must hold int32 indices, got"),
    ],
)
def test_an_index_of_another_type_is_refused(dtype, message, tmp_path):
    embedding = made("SEE")
    embedding.index = embedding.index.to(dtype)
    with torch.device("meta"):
        architecture = nn.Sequential(nn.Embedding(WORDS, COLUMNS, dtype=torch.float64))

    def save_and_load():
        mpo.save(nn.Sequential(embedding), tmp_path)
        mpo.load(tmp_path, architecture)

    with pytest.raises(MPOError, match=message):
        save_and_load()


@pytest.mark.parametrize("form", ["word2ketXS", "SEE", "tokens"])
def test_it_compiles_whole(form):
    embedding, ids = made(form), torch.randint(WORDS, (4, 50))
    torch._dynamo.reset()
    compiled = torch.compile(embedding, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), embedding(ids))
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids), embedding(ids))
    dynamic = {"input": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.STATIC}}
    program = torch.export.export(embedding, (ids,), dynamic_shapes=dynamic)
    torch.testing.assert_close(program.module()(ids[:3]), embedding(ids[:3]))
