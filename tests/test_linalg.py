"""Factorisations survive a failure of the library's routine, and end in an error that says what to do."""

from __future__ import annotations

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import mpochain
from mpochain import MPOError, arrays, linalg
from mpochain.errors import FactorizationError

LIBRARIES = {"numpy": np.asarray, "torch": torch.tensor, "jax": jnp.asarray}
FAILURES = {"numpy": np.linalg.LinAlgError, "torch": torch.linalg.LinAlgError, "jax": RuntimeError}


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-10)


def check(name, x, scale=1.0):
    """Check a factorisation against its definition."""
    x = np.asarray(x)
    size = min(x.shape[-2:])
    if name == "svd":
        u, s, vh = map(np.asarray, linalg.svd(LIBRARY(x * scale)))
        close((u * s[..., None, :]) @ vh / scale, x)
        close(np.swapaxes(u, -1, -2) @ u, np.broadcast_to(np.eye(size), (*x.shape[:-2], size, size)))
        close(s / scale, np.linalg.svd(x, compute_uv=False))
    elif name == "svdvals":
        close(np.asarray(linalg.svdvals(LIBRARY(x * scale))) / scale, np.linalg.svd(x, compute_uv=False))
    elif name == "qr":
        q, r = map(np.asarray, linalg.qr(LIBRARY(x * scale)))
        close(q @ r / scale, x)
        close(q.T @ q, np.eye(size))
    else:
        symmetric = x @ x.T
        values, vectors = map(np.asarray, linalg.eigh(LIBRARY(symmetric * scale)))
        close((vectors * values) @ vectors.T / scale, symmetric)
        assert (np.diff(values) >= 0).all()


LIBRARY = np.asarray


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["svd", "svdvals", "qr", "eigh"])
@pytest.mark.parametrize("times", [0, 1, 10**6])
def test_every_factorisation_survives_failures_of_its_library(monkeypatch, library, name, times):
    monkeypatch.setitem(globals(), "LIBRARY", LIBRARIES[library])
    xp = arrays.namespace(LIBRARIES[library]([1.0]))
    real, failed = getattr(xp.linalg, name), [0]

    def failing(*args, **kwargs):
        failed[0] += 1
        if failed[0] <= times:
            raise FAILURES[library](f"{name} did not converge")
        return real(*args, **kwargs)

    monkeypatch.setattr(xp.linalg, name, failing)
    random = np.random.default_rng(1)
    for shape in ((6, 4), (4, 6), (1, 3), (3, 1)):
        failed[0] = 0
        check(name, random.normal(size=shape))
    failed[0] = 0
    check(name, random.normal(size=(5, 4)), 2.0**-900 if name != "eigh" else 2.0**-400)
    if name == "svd":
        failed[0] = 0
        check(name, random.normal(size=(3, 5, 4)))


def test_the_svd_by_gram_matrix_is_the_last_resort(monkeypatch):
    import scipy.linalg

    def fail(*args, **kwargs):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(arrays.namespace(np.ones(1)).linalg, "svd", fail)
    monkeypatch.setattr(scipy.linalg, "svd", fail)
    for shape in ((6, 4), (4, 6), (5, 5), (1, 3), (3, 1)):
        check("svd", np.random.default_rng(1).normal(size=shape))


def test_an_error_names_the_layer_and_what_to_do(monkeypatch):
    import scipy.linalg

    def fail(*args, **kwargs):
        raise np.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(arrays.namespace(np.ones(1)).linalg, "eigh", fail)
    monkeypatch.setattr(scipy.linalg, "eigh", fail)
    message = r"^the weight of up: the eigenvalue .* 3x3 matrix .* ignore="
    with pytest.raises(FactorizationError, match=message), linalg.named("the weight of up"):
        linalg.eigh(np.eye(3))
    W, spec = np.random.default_rng(0).normal(size=(8, 8)), mpochain.ChainSpec((2, 4), (2, 4), 2)
    with pytest.raises(MPOError, match=r"^blocks.3: "):
        mpochain.decompose(W, spec, name="blocks.3")


def test_overflow_before_a_factorisation_is_told_from_a_failure_to_converge():
    with pytest.raises(FactorizationError, match="overflow in earlier products"):
        linalg.svd(np.full((2, 2), np.nan))


def test_singular_systems_have_the_solution_of_least_norm():
    random = np.random.default_rng(0)
    root = random.normal(size=(5, 3))
    a = root @ root.T
    b = random.normal(size=(5, 2))
    for library in LIBRARIES.values():
        a[:, 0] = a[0] = 0.0
        close(linalg.solve(library(a), library(b)), np.linalg.pinv(a, hermitian=True, rcond=1e-14) @ b)
        close(linalg.inverse(library(a + np.eye(5))), np.linalg.inv(a + np.eye(5)))
    close(linalg.solve(np.zeros((2, 2)), np.ones((2, 1))), np.zeros((2, 1)))


@pytest.mark.parametrize("fails", [False, True])
def test_pivoted_qr_and_triangular_systems_have_other_routines(monkeypatch, fails):
    import scipy.linalg

    def fail(*args, **kwargs):
        raise np.linalg.LinAlgError("failed")

    if fails:
        monkeypatch.setattr(scipy.linalg, "qr", fail)
        monkeypatch.setattr(scipy.linalg, "solve_triangular", fail)
    random = np.random.default_rng(0)
    for x in (random.normal(size=(4, 7)), random.normal(size=(7, 4)), random.normal(size=(5, 2)) @ np.ones((2, 6))):
        triangle, order = linalg.pivoted_qr(x)
        np.testing.assert_allclose(triangle.T @ triangle, x[:, order].T @ x[:, order], atol=1e-10)
        sizes = np.abs(np.diagonal(triangle))
        assert (sizes[:-1] >= sizes[1:] - 1e-12).all()
        assert np.allclose(np.tril(triangle, -1), 0)
    triangle = np.triu(random.normal(size=(4, 4))) + 4 * np.eye(4)
    np.testing.assert_allclose(triangle @ linalg.solve_triangular(triangle, x[:4, :2]), x[:4, :2], atol=1e-12)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
def test_triangles_of_symmetric_matrices(monkeypatch, library, fails):
    def fail(*args, **kwargs):
        raise FAILURES[library]("not positive definite")

    random = np.random.default_rng(0)
    x = random.normal(size=(6, 6))
    matrix = LIBRARIES[library](x @ x.T)
    if fails:
        monkeypatch.setattr(arrays.namespace(matrix).linalg, "cholesky", fail)
    close(linalg.cholesky(matrix), np.linalg.cholesky(x @ x.T))


def test_the_triangle_of_a_matrix_that_rounding_made_indefinite():
    x = np.random.default_rng(0).normal(size=(6, 3))
    triangle = linalg.cholesky(x @ x.T - 1e-14 * np.eye(6))
    assert (np.diagonal(triangle) > 0).all()
    np.testing.assert_allclose(triangle @ triangle.T, x @ x.T, atol=1e-12)


def test_running_out_of_memory_is_not_taken_for_a_failure(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("not enough memory: you tried to allocate 1 TB")

    monkeypatch.setattr(arrays.namespace(torch.ones(1)).linalg, "svd", fail)
    with pytest.raises(RuntimeError, match="not enough memory"):
        linalg.svd(torch.ones(2, 2))


def test_no_other_module_calls_a_factorisation():
    calls = re.compile(r"linalg\.(svd|svdvals|eigh|eigvalsh|eig|qr|cholesky|solve|inv|pinv|lstsq|lu)\(")
    source = Path(mpochain.__file__).parent
    found = [
        str(path) for path in source.rglob("*.py") if path.parent.name != "linalg" and calls.search(path.read_text())
    ]
    assert not found
