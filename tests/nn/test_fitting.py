"""Rows are fitted as near to a table as they can come, frequent words first."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain import ChainSpec, EntangledEmbedding, MPOEmbedding, MPOError, TokenTrainEmbedding
from mpochain.nn.embeddings.fitting import fit_rows

WORDS, COLUMNS = 36, 12


def table_of(seed=3):
    return torch.randn(WORDS, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entangled(**arguments):
    torch.manual_seed(0)
    return EntangledEmbedding(WORDS, COLUMNS, dtype=torch.float64, **arguments)


@pytest.mark.parametrize("ranks", [1, 3, 8, 30])
def test_two_places_of_digits_are_as_near_as_singular_values_say(ranks):
    embedding = entangled(order=2, ranks=ranks, dims=(3, 4))
    found = fit_rows(embedding, table_of(), iterations=0)
    spec = ChainSpec((6, 6), (3, 4), ranks)
    best = mpo.decompose(table_of(), spec)
    assert found.error == pytest.approx(best.relative_error, abs=1e-9)
    assert fit_rows(embedding, table_of()).error == pytest.approx(best.relative_error, abs=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_words_of_their_own_are_as_near_as_singular_values_say(ranks):
    found = fit_rows(entangled(order=2, ranks=ranks, dims=(3, 4), units="own"), table_of(), iterations=0)
    S = torch.linalg.svdvals(table_of().view(WORDS, 3, 4))
    expected = (S[:, ranks:].square().sum(1) / S.square().sum(1)).sqrt()
    torch.testing.assert_close(found.errors, expected, atol=1e-7, rtol=1e-7)


def test_a_table_of_such_rows_is_found_again():
    index = torch.randint(6, (WORDS, 2), generator=torch.Generator().manual_seed(1))
    for arguments in ({"order": 3}, {"units": index}, {"units": index, "coefficients": True}):
        planted = entangled(ranks=1, **arguments)
        other = entangled(ranks=2, **arguments)  # of one rank alone some starts end elsewhere
        torch.manual_seed(5)
        other.reset_parameters()
        found = fit_rows(other, planted.weight.detach(), iterations=500)
        assert found.error < 1e-3, arguments
        torch.testing.assert_close(
            found.errors, (other.weight - planted.weight).norm(dim=1).detach() / planted.weight.norm(dim=1).detach()
        )


@pytest.mark.parametrize("kind", ["SEE", "MorphTE", "train", "chain"])
def test_any_embedding_comes_nearer(kind):
    index = torch.arange(WORDS * 2).view(WORDS, 2) % 20
    torch.manual_seed(0)
    embedding = {
        "SEE": lambda: entangled(units=index, ranks=3, coefficients=True),
        "MorphTE": lambda: entangled(units=index, ranks=3, norm=True),
        "train": lambda: TokenTrainEmbedding(WORDS, COLUMNS, 1, dtype=torch.float64),
        "chain": lambda: MPOEmbedding(WORDS, COLUMNS, max_bond=3, dtype=torch.float64),
    }[kind]()
    before = fit_rows(embedding, table_of(), iterations=0)
    after = fit_rows(embedding, table_of(), iterations=60)
    assert after.error < 0.95 < before.error
    assert before.evaluations == 0 < after.evaluations <= 120
    assert all(each.grad is None for each in embedding.parameters())
    overall = (table_of() - embedding.weight.detach()).norm() / table_of().norm()
    assert after.error == pytest.approx(float(overall), rel=1e-9)


def test_frequent_words_are_fitted_better():
    frequencies = torch.tensor([100.0] * 6 + [1.0] * (WORDS - 7) + [0.0])
    arguments = {"order": 3, "ranks": 2}
    plain, weighed = entangled(**arguments), entangled(**arguments)
    alike = fit_rows(plain, table_of(), iterations=300)
    found = fit_rows(weighed, table_of(), frequencies=frequencies, iterations=300)
    assert found.errors[:6].mean() < alike.errors[:6].mean()
    rest = (weighed.weight.detach() - table_of()).square().sum(1)
    expected = (rest * frequencies).sum() / (table_of().square().sum(1) * frequencies).sum()
    assert found.error == pytest.approx(float(expected.sqrt()), rel=1e-9)


def test_what_is_frozen_stays():
    for frozen in ("table_0", "table_1"):
        embedding = entangled(order=2, ranks=2, dims=(3, 4))
        before = embedding.get_parameter(frozen).requires_grad_(False).clone()
        assert fit_rows(embedding, table_of(), iterations=30).error < 1
        assert torch.equal(embedding.get_parameter(frozen), before)
    with pytest.raises(MPOError, match="all parameters of the embedding are frozen"):
        fit_rows(embedding.requires_grad_(False), table_of())


def test_gradients_that_were_there_stay():
    embedding = entangled(order=3, ranks=2)
    embedding.weight.sum().backward()
    before = [each.grad for each in embedding.parameters()]
    values = [each.clone() for each in before]
    fit_rows(embedding, table_of(), iterations=3)
    assert all(each.grad is gradient for each, gradient in zip(embedding.parameters(), before, strict=True))
    torch.testing.assert_close(before, values, rtol=0, atol=0)


def test_a_row_of_zeros_and_float32():
    table = table_of().float()
    table[4] = 0
    torch.manual_seed(0)
    embedding = EntangledEmbedding(WORDS, COLUMNS, order=2, ranks=3, units="own")
    with torch.no_grad():
        found = fit_rows(embedding, table)
    assert found.errors.dtype == torch.float32
    assert found.errors[4] == 0
    assert found.errors.isfinite().all()


def test_tables_and_frequencies_that_do_not_fit_are_refused():
    embedding, table = entangled(order=2), table_of()
    with pytest.raises(MPOError, match=r"table has shape \(36, 11\); expected \(36, 12\)"):
        fit_rows(embedding, table[:, 1:])
    with pytest.raises(MPOError, match=r"frequencies have shape \(35,\); expected \(36,\)"):
        fit_rows(embedding, table, frequencies=torch.ones(35))
    for wrong in (torch.zeros(36), torch.full((36,), -1.0), torch.full((36,), float("nan"))):
        with pytest.raises(MPOError, match="non-negative and not all 0"):
            fit_rows(embedding, table, frequencies=wrong)
    table[3, 3] = float("inf")
    with pytest.raises(MPOError, match="NaN or infinite"):
        fit_rows(embedding, table)
    assert not any(each.grad is not None for each in nn.ModuleList([embedding]).parameters())


def test_a_row_of_zeros_is_met_or_is_not():
    table = torch.randn(WORDS, COLUMNS)
    table[3] = 0
    fit = fit_rows(EntangledEmbedding(WORDS, COLUMNS, order=3), table, iterations=0)
    assert fit.errors[3] == math.inf
    assert fit.errors.isfinite().sum() == WORDS - 1
    whole = fit_rows(
        TokenTrainEmbedding.from_embedding(nn.Embedding.from_pretrained(table, freeze=False), COLUMNS),
        table,
        iterations=0,
    )
    assert whole.errors[3] == 0
