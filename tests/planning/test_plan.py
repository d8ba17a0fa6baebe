"""Contraction plans: candidates, the choice among them, and its constancy over versions."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import opt_einsum
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import SEEDS, cores, specs

from mpochain import ChainSpec, MPOChain, MPOError, plan
from mpochain.errors import ArgumentError, SpecError
from mpochain.planning import MODELS, Machine, Setting, candidates, lower
from mpochain.planning.batches import batch_bucket
from mpochain.planning.candidates import _fewest_macs
from mpochain.planning.narrow_steps import least_batched
from mpochain.shapes import low_rank

LIBRARIES = {"numpy": np.asarray, "torch": torch.tensor, "jax": jnp.asarray}


@given(specs(), SEEDS, st.sampled_from([1, 2, 9]))
def test_every_candidate_equals_dense(spec, seed, batch):
    chain = MPOChain(tuple(cores(spec, seed)), spec)
    x = np.random.default_rng(seed).normal(size=(batch, spec.in_features))
    expected = x @ chain.to_matrix().T
    seen = set()
    for candidate in candidates(spec, batch):
        schedule = candidate.schedule
        y = schedule.sweep(x, schedule.merge(chain.cores, np), np)
        np.testing.assert_allclose(y, expected, rtol=1e-8, atol=1e-9 * max(np.abs(expected).max(), 1.0))
        seen.add((candidate.groups, candidate.order))
    plain = tuple((k,) for k in range(spec.sites))
    order = tuple(range(spec.sites))
    assert (plain, order) in seen
    assert (plain, order[::-1]) in seen
    assert (((*order,),), (0,)) in seen, "the dense rebuild is always a candidate"


@given(specs(max_sites=4, padding=False), st.sampled_from([1, 8]))
def test_counted_macs_are_those_of_opt_einsum(spec, batch):
    for candidate in candidates(spec, batch):
        schedule = candidate.schedule
        shapes = list(spec.core_shapes)
        for step in schedule.merges:
            shapes[step.position : step.position + 2] = [step.result]
        ins = [i for _, _, i, _ in shapes]
        _, info = opt_einsum.contract_path(
            candidate.equation, (batch, *ins), *shapes, shapes=True, optimize=list(candidate.path)
        )
        sizes = info.size_dict
        ours = batch * schedule.sweep_macs
        assert ours == sum(_macs(contraction[2], sizes) for contraction in info.contraction_list)


def _macs(equation, sizes):
    return math.prod(sizes[index] for index in set(equation) - set(",->"))


@given(specs(max_sites=4), st.integers(1, 70))
def test_the_plan_runs_any_batch(spec, batch):
    chain = MPOChain(tuple(cores(spec, 1)), spec)
    W = chain.to_matrix()
    for mode in ("inference", "training"):
        for memory in ("compact", "fast"):
            chosen_plan = plan(spec, batch, mode=mode, memory=memory)
            for lead in [(), (0,), (3,), (2, 0, 2), (2, 3)]:
                x = np.random.default_rng(0).normal(size=(*lead, spec.in_features))
                y = chosen_plan(x, *chain.cores)
                assert y.shape == (*lead, spec.out_features)
                np.testing.assert_allclose(y, x @ W.T, rtol=1e-8, atol=1e-9 * max(np.abs(W).max(), 1) * W.shape[1])
                np.testing.assert_array_equal(chosen_plan.sweep(x, *chosen_plan.merge(*chain.cores)), y)


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library(library):
    spec = ChainSpec((3, 4, 2), (2, 5, 3), max_bond=4, in_features=29)
    chain = MPOChain(tuple(LIBRARIES[library](core) for core in cores(spec, 0)), spec)
    x = LIBRARIES[library](np.random.default_rng(1).normal(size=(6, 29)))
    y = plan(spec, 6)(x, *chain.cores)
    assert type(y) is type(x)
    np.testing.assert_allclose(np.asarray(y), np.asarray(x) @ np.asarray(chain.to_matrix()).T, atol=1e-10)


def test_plans_are_cached_and_picklable():
    spec = ChainSpec((4, 4), (4, 4), 3)
    assert plan(spec, 8) is plan(ChainSpec((4, 4), (4, 4), 3), 8)
    copy = pickle.loads(pickle.dumps(plan(spec, 8)))
    x = np.ones((8, 16))
    np.testing.assert_array_equal(copy(x, *cores(spec, 0)), plan(spec, 8)(x, *cores(spec, 0)))


def test_running_a_plan_never_asks_opt_einsum(monkeypatch):
    spec = ChainSpec((4, 4, 2), (4, 4, 3), 3)
    chosen_plan = plan(spec, 8)

    def fail(*args, **kwargs):
        raise AssertionError("a path was searched while running")

    monkeypatch.setattr(opt_einsum, "contract_path", fail)
    chosen_plan(np.ones((8, 48)), *cores(spec, 0))
    assert plan(spec, 8) is chosen_plan


def test_the_plan_explains_itself():
    chosen_plan = plan(ChainSpec((12, 16, 16), (8, 8, 12), 32), 32)
    text = str(chosen_plan)
    for word in (
        "equation",
        "kernel    ",
        "fold",
        "path",
        "MACs",
        "peak",
        "predicted",
        "dense",
        "rebuild",
        "bonds (32,32)",
    ):
        assert word in text
    assert chosen_plan.dense_macs == 32 * 768 * 3072
    assert f"{chosen_plan.dense_macs:,}" in text
    assert text.count("*") == 1
    assert chosen_plan.predicted_seconds == min(entry.predicted for entry in chosen_plan.considered)
    assert chosen_plan.measured_seconds is None
    assert "measured" not in text


def test_the_choice_follows_the_work():
    # Many rows and wide bonds: rebuild. One row and a narrow bond: sweep. Cached merges: never a merge at each call.
    many_macs = ChainSpec((48, 64), (24, 32), 32)
    assert plan(many_macs, 4096).chosen.rebuilds
    assert not plan(ChainSpec((48, 64), (24, 32), 4), 1).chosen.rebuilds
    skewed = ChainSpec((512, 8), (8, 512), 16)
    chosen_plan = plan(skewed, 2048)
    assert chosen_plan.folds == ((0,), (1,))
    assert chosen_plan.macs * 15 < chosen_plan.dense_macs
    fast = plan(many_macs, 4096, memory="fast")
    assert fast.macs == fast.dense_macs
    assert plan(many_macs, 4096).macs > plan(many_macs, 4096).dense_macs


def test_peak_elements_are_counted():
    # Right-first sweep of a 6x4 chain with 2 rows: state (2*2, 2) -> (2*2, 2*3): cores 2*2*2 + 2*3*2, plus 8 + 24.
    spec = ChainSpec((2, 3), (2, 2), 2)
    for candidate in candidates(spec, 2):
        if candidate.order == (1, 0):
            assert candidate.schedule.peak_elements(2) == 8 + 12 + max(8 + 24, 24 + 12)


def test_requested_bonds_of_one_caller_do_not_show_in_anothers_plan():
    exact, clipped = ChainSpec((4, 8), (8, 4), 32), ChainSpec((4, 8), (8, 4), 500)
    for first, second in ((exact, clipped), (clipped, exact)):
        assert ("clipped" in str(plan(first, 7))) is first.clipped
        assert ("clipped" in str(plan(second, 7))) is second.clipped


def _least_merge_macs(shapes):
    """By trying every order of merging neighbours."""
    if len(shapes) == 1:
        return 0
    options = []
    for k in range(len(shapes) - 1):
        (r, o, i, s), (_, p, j, t) = shapes[k], shapes[k + 1]
        rest = [*shapes[:k], (r, o * p, i * j, t), *shapes[k + 2 :]]
        options.append(r * o * i * s * p * j * t + _least_merge_macs(rest))
    return min(options)


@given(specs(max_sites=5))
def test_the_sweep_of_fewest_macs_is_found(spec):
    groups = [(site,) for site in range(spec.sites)]
    macs = {order: lower(spec, groups, [], order).sweep_macs for order in permutations(range(spec.sites))}
    assert macs[_fewest_macs(spec.core_shapes)] == min(macs.values())


@given(specs(max_sites=4), st.sampled_from([1, 64]))
def test_opt_einsum_finds_no_better_sweep(spec, batch):
    """Where its path over a grouping is a sweep, it is one of fewest multiply-adds."""
    for candidate in candidates(spec, batch):
        if candidate.searched:
            shapes = list(spec.core_shapes)
            for step in candidate.schedule.merges:
                shapes[step.position : step.position + 2] = [step.result]
            groups = candidate.groups
            merged = lower(spec, groups, [step.position for step in candidate.schedule.merges], _fewest_macs(shapes))
            assert candidate.schedule.sweep_macs == merged.sweep_macs


@given(specs(max_sites=5))
def test_groups_are_merged_in_the_cheapest_order(spec):
    (candidate,) = (c for c in candidates(spec, 1) if c.rebuilds)
    assert candidate.schedule.merge_macs == _least_merge_macs(list(spec.core_shapes))


def test_long_chains_are_planned_too():
    spec = ChainSpec((2,) * 12, (2,) * 12, 4)
    chosen_plan = plan(spec, 16)
    assert plan(ChainSpec((2,) * 24, (2,) * 24, 4), 16).macs > 0
    chain = MPOChain(tuple(cores(spec, 0)), spec)
    x = np.random.default_rng(0).normal(size=(2, spec.in_features))
    np.testing.assert_allclose(chosen_plan(x, *chain.cores), chain.apply(x), rtol=1e-8, atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "batch", "keeps"),
    [
        (low_rank(512, 512, 64), 1 << 13, True),
        (low_rank(512, 512, 64), 1 << 17, False),  # 32 MiB
        (ChainSpec((32, 32), (32, 32), 4), 1 << 13, False),
    ],
    ids=["low rank", "more than may be kept", "states wider than the input"],
)
def test_only_narrow_states_are_kept_in_training(spec, batch, keeps):
    # Kernels of sweeps alone, so that the question is which of them.
    sweeping = [kernel for kernel in MODELS if kernel.name in ("autograd", "tiled")]
    for mode in ("training", "inference"):
        chosen = plan(spec, batch, mode=mode, kernels=sweeping).chosen
        assert (chosen.kernel == "autograd") is (keeps and mode == "training")


def _stored_text(variant):
    groups = " ".join("{" + ",".join(map(str, group)) + "}" for group in variant.candidate.groups)
    text = f"{groups} order {'>'.join(map(str, variant.candidate.order))}, {variant.kernel}, tile {variant.tile}"
    return text + "".join(f", {name} {size}" for name, size in variant.options)


def test_the_same_plans_are_chosen_as_before_kernels_had_names():
    """``chosen_plans.json`` was written by the version before; its plans depended on rules in place of kernels."""
    kernels = set()
    for entry in json.loads((Path(__file__).parent / "chosen_plans.json").read_text()):
        spec = ChainSpec.from_dict(entry["spec"])
        for conditions, by_batch in entry["chosen"].items():
            dtype, mode, memory = conditions.split()
            for batch, text in by_batch.items():
                chosen = plan(spec, int(batch), mode=mode, memory=memory, setting=Setting(dtype)).chosen
                assert _stored_text(chosen) == text
                kernels.add(chosen.kernel)
    assert kernels == {kernel.name for kernel in MODELS}


def test_a_plan_is_a_function_of_its_arguments(monkeypatch):
    from mpochain.planning.store import Store

    monkeypatch.setattr(Store, "machine", lambda *_: pytest.fail("the user's cache was asked"))
    spec = ChainSpec((64, 64), (64, 64), 4)
    assert plan(spec, 1024).machine == Machine()
    assert plan(spec, 1024, setting=Setting("bfloat16")).machine == Machine(element_bytes=2)
    small_cache = Machine(cache_bytes=1 << 18)
    assert plan(spec, 1024, machine=small_cache).machine is small_cache
    assert plan(spec, 1024, machine=small_cache).tile < plan(spec, 1024).tile
    assert plan(spec, 1024, machine=replace(small_cache, smallest_tile=512)).tile == 1024


@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 20))
def test_narrow_steps_are_batched_where_one_product_is_faster(kept, summed, after):
    machine = Machine()
    least = least_batched(kept, summed, after, machine)
    assert least == least_batched(summed, kept, after, machine), "the backward pass transposes the matrix"
    near = (max(least - 1, 1), least, least + 1) if least < 10**12 else ()
    for count in (1, 2, 7, 10**6, *near):
        # Nanoseconds, as fitted.
        saved = kept * summed * (0.29 - 0.0105 * after) - 1.4 * after * (kept + summed) - 25_000 / max(count, 1)
        if not 1 < after < 16 or saved < -1e-6:
            assert count < least
        elif saved > 1e-6:
            assert count >= least


@given(st.integers(0, 10**7))
def test_buckets(rows):
    bucket = batch_bucket(rows)
    assert bucket >= max(rows, 1)
    assert bucket == 1 or bucket < 2 * rows
    assert bucket & (bucket - 1) == 0


class TestBadInput:
    SPEC = ChainSpec((2, 3), (2, 2), 2)

    @pytest.mark.parametrize("batch", [0, -3, 1.5, "8", True])
    def test_batch(self, batch):
        with pytest.raises(ArgumentError, match="batch must be a positive integer") as caught:
            plan(self.SPEC, batch)
        assert not isinstance(caught.value, SpecError), "of specs alone"

    def test_choices(self):
        with pytest.raises(MPOError, match="mode must be 'inference' or 'training', got 'test'"):
            plan(self.SPEC, 1, mode="test")
        with pytest.raises(MPOError, match="memory must be 'compact' or 'fast'"):
            plan(self.SPEC, 1, memory="big")
        with pytest.raises(MPOError, match="graph must be 'eager', 'compiled' or 'portable', got 'onnx'"):
            plan(self.SPEC, 1, graph="onnx")
        with pytest.raises(MPOError, match="machine must be a Machine, got str"):
            plan(self.SPEC, 1, machine="fast")
        with pytest.raises(ArgumentError, match="no kernel can run .* got the kernels: tiled"):
            plan(ChainSpec((2,), (2,)), 1, kernels=[kernel for kernel in MODELS if kernel.name == "tiled"])
        with pytest.raises(MPOError, match="plan needs a ChainSpec, got tuple"):
            plan(((2, 3), (2, 2)), 1)

    def test_arrays(self):
        chosen_plan = plan(self.SPEC, 1)
        with pytest.raises(MPOError, match=r"6 features|4 input features"):
            chosen_plan(np.ones((3, 5)), *cores(self.SPEC, 0))
        with pytest.raises(MPOError, match="the plan is for cores of shapes"):
            chosen_plan(np.ones((3, 4)), *cores(ChainSpec((2, 3), (2, 2), 1), 0))
        with pytest.raises(MPOError, match="one library"):
            chosen_plan(torch.ones(3, 4), *cores(self.SPEC, 0))


def test_a_plan_of_cached_cores_is_asked_for_as_in_a_layer():
    spec = ChainSpec((48, 64), (24, 32), 4)
    assert plan(spec, 8, cache=True).memory == plan(spec, 8, memory="fast").memory == "fast"
    assert plan(spec, 8).memory == "compact"
    with pytest.raises(ArgumentError, match="contradict each other"):
        plan(spec, 8, cache=True, memory="compact")
