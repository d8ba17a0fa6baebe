"""Triton functions: low-rank products and chain sweeps whose intermediate states stay on the chip.

The only module that imports Triton; it is imported at the first launch. Blocks have sizes that are powers of two, and
what lies outside of a tensor is masked. Products accumulate in ``ACCUMULATE``, which is float32 except for float64.
Sizes of layers are constants of compilation, so masks that mask nothing are removed; only numbers of rows are not.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["chain_sweep", "one_product", "two_products"]


@triton.jit
def _factor(
    weight,
    place,
    a,
    k,
    stride_a,
    stride_k,
    SIZE: tl.constexpr,
    RANK: tl.constexpr,
    PLACED: tl.constexpr,
):
    """Block ``(a, k)`` of a factor ``(SIZE, RANK)`` of the matrix.

    If placed, row ``j`` of the factor is row ``place[j] - RANK`` of the weight, or for ``place[j] < RANK`` a row of the
    identity, which is made here, so that outputs are written in their places.
    """
    mask = (a < SIZE)[:, None] & (k < RANK)[None, :]
    if PLACED:
        at = tl.load(place + a, mask=a < SIZE, other=0)
        source = tl.maximum(at - RANK, 0)
        stored = tl.load(
            weight + source[:, None] * stride_a + k[None, :] * stride_k, mask=mask & (at >= RANK)[:, None], other=0.0
        )
        identity = mask & (at[:, None] == k[None, :])
        return tl.where(identity, identity.to(tl.float32).to(stored.dtype), stored)
    return tl.load(weight + a[:, None] * stride_a + k[None, :] * stride_k, mask=mask, other=0.0)


@triton.jit
def _dot(left, right, total, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, WIDENS: tl.constexpr):
    """The product of two blocks, added to the total if there is one.

    ``WIDENS`` is for the interpreter, whose NumPy has no bfloat16; the products of a GPU are exact in float32 too.
    """
    if WIDENS:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION, out_dtype=ACCUMULATE)


@triton.jit
def two_products(
    x,
    first,
    second,
    place,
    bias,
    y,
    middle,
    rows,
    x_row,
    x_in,
    first_a,
    first_k,
    second_a,
    second_k,
    SIZE_IN: tl.constexpr,
    RANK: tl.constexpr,
    SIZE_OUT: tl.constexpr,
    FIRST_PLACED: tl.constexpr,
    SECOND_PLACED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STORES_MIDDLE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDENS: tl.constexpr,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    MIDDLE: tl.constexpr,
    OUT: tl.constexpr,
):
    """``x (rows, in)`` by two factors ``(in, rank)`` and ``(out, rank)``, for many rows: a program per block of rows.

    The product with the first factor stays on the chip; it is stored only for the backward pass.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    k = tl.arange(0, MIDDLE)
    state = tl.zeros((ROWS, MIDDLE), dtype=ACCUMULATE)
    for start in range(0, SIZE_IN, IN):
        i = start + tl.arange(0, IN)
        read = (row < rows)[:, None] & (i < SIZE_IN)[None, :]
        left = tl.load(x + row[:, None] * x_row + i[None, :] * x_in, mask=read, other=0.0)
        right = _factor(first, place, i, k, first_a, first_k, SIZE_IN, RANK, FIRST_PLACED)
        state = _dot(left, right, state, ACCUMULATE, PRECISION, WIDENS)
    rounded = state.to(x.dtype.element_ty)
    if STORES_MIDDLE:
        stored = (row < rows)[:, None] & (k < RANK)[None, :]
        tl.store(middle + row[:, None] * RANK + k[None, :], rounded, mask=stored)
    for start in range(0, SIZE_OUT, OUT):
        j = start + tl.arange(0, OUT)
        right = _factor(second, place, j, k, second_a, second_k, SIZE_OUT, RANK, SECOND_PLACED)
        out = _dot(rounded, tl.trans(right), None, ACCUMULATE, PRECISION, WIDENS)
        if HAS_BIAS:
            out += tl.load(bias + j, mask=j < SIZE_OUT, other=0.0).to(ACCUMULATE)[None, :]
        written = (row < rows)[:, None] & (j < SIZE_OUT)[None, :]
        tl.store(y + row[:, None] * SIZE_OUT + j[None, :], out.to(y.dtype.element_ty), mask=written)


@triton.jit
def one_product(
    x,
    weight,
    place,
    bias,
    y,
    rows,
    x_part,
    x_row,
    x_summed,
    stride_a,
    stride_k,
    SIZE_SUMMED: tl.constexpr,
    SIZE_KEPT: tl.constexpr,
    SUMS_RANK: tl.constexpr,
    PLACED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    NEXT_PARTS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDENS: tl.constexpr,
    ROWS: tl.constexpr,
    SUMMED: tl.constexpr,
    KEPT: tl.constexpr,
):
    """``x`` by one factor ``(size, rank)``, for few rows: programs per block of outputs and per part of the sum.

    With few rows a product takes the time of reading its factor, so the sum is split until all multiprocessors read.
    The result has a leading axis of ``NEXT_PARTS``. The next product, whose ``PARTS`` they are, adds them as it reads.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    kept = tl.program_id(1) * KEPT + tl.arange(0, KEPT)
    part = tl.program_id(2)
    total = tl.zeros((ROWS, KEPT), dtype=ACCUMULATE)
    for start in range(0, SIZE_SUMMED, NEXT_PARTS * SUMMED):
        summed = start + part * SUMMED + tl.arange(0, SUMMED)
        at = x + row[:, None] * x_row + summed[None, :] * x_summed
        mask = (row < rows)[:, None] & (summed < SIZE_SUMMED)[None, :]
        left = tl.load(at, mask=mask, other=0.0)
        for number in range(1, PARTS):
            left += tl.load(at + number * x_part, mask=mask, other=0.0)
        if SUMS_RANK:
            right = tl.trans(_factor(weight, place, kept, summed, stride_a, stride_k, SIZE_KEPT, SIZE_SUMMED, PLACED))
        else:
            right = _factor(weight, place, summed, kept, stride_a, stride_k, SIZE_SUMMED, SIZE_KEPT, PLACED)
        total = _dot(left.to(right.dtype), right, total, ACCUMULATE, PRECISION, WIDENS)
    if HAS_BIAS:
        total += tl.load(bias + kept, mask=kept < SIZE_KEPT, other=0.0).to(ACCUMULATE)[None, :]
    mask = (row < rows)[:, None] & (kept < SIZE_KEPT)[None, :]
    at = y + (part * rows + row)[:, None] * SIZE_KEPT + kept[None, :]
    tl.store(at, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def chain_sweep(
    x,
    a,
    b,
    c,
    y,
    rows,
    x_row,
    x_a,
    x_b,
    x_c,
    a_bond,
    a_out,
    a_in,
    b_bond,
    b_out,
    b_in,
    b_summed,
    c_out,
    c_in,
    c_summed,
    y_row,
    y_a,
    y_b,
    y_c,
    SIZES: tl.constexpr,
    MIDDLE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDENS: tl.constexpr,
    ROWS: tl.constexpr,
    IN_A: tl.constexpr,
    IN_B: tl.constexpr,
    IN_C: tl.constexpr,
    OUT_A: tl.constexpr,
    OUT_B: tl.constexpr,
    OUT_C: tl.constexpr,
    AB: tl.constexpr,
    BC: tl.constexpr,
):
    """Rows through two cores, a and c, or three: a, b and c, in this order of contraction.

    A program computes a block of rows and of the out axis of core a, which no later core touches, so nothing is
    computed twice. It adds up over blocks of the in axis of core c, which no earlier core touches, so only a small part
    of the state exists at a time, in registers and shared memory.
    """
    in_a: tl.constexpr = SIZES[0]
    in_b: tl.constexpr = SIZES[1]
    in_c: tl.constexpr = SIZES[2]
    out_a: tl.constexpr = SIZES[3]
    out_b: tl.constexpr = SIZES[4]
    out_c: tl.constexpr = SIZES[5]
    bond_ab: tl.constexpr = SIZES[6]
    bond_bc: tl.constexpr = SIZES[7]
    dtype: tl.constexpr = x.dtype.element_ty
    first_out = tl.program_id(1) * OUT_A
    # Names are not used again for blocks of other sizes, since what a loop assigns must keep its type.
    # Core a as (in, bond and out).
    n_a = tl.arange(0, AB * OUT_A)
    bond_a, to_a, from_a = n_a // OUT_A, first_out + n_a % OUT_A, tl.arange(0, IN_A)
    mask_a = (from_a < in_a)[:, None] & ((bond_a < bond_ab) & (to_a < out_a))[None, :]
    core_a = tl.load(a + (from_a * a_in)[:, None] + (bond_a * a_bond + to_a * a_out)[None, :], mask=mask_a, other=0.0)
    if MIDDLE:
        # Core b as (in and summed bond, kept bond and out).
        m_b, n_b = tl.arange(0, IN_B * AB), tl.arange(0, BC * OUT_B)
        from_b, summed_b, kept_b, to_b = m_b // AB, m_b % AB, n_b // OUT_B, n_b % OUT_B
        mask_b = ((from_b < in_b) & (summed_b < bond_ab))[:, None] & ((kept_b < bond_bc) & (to_b < out_b))[None, :]
        offsets_b = (from_b * b_in + summed_b * b_summed)[:, None] + (kept_b * b_bond + to_b * b_out)[None, :]
        core_b = tl.load(b + offsets_b, mask=mask_b, other=0.0)
    # Axes of the input block: row, in of core c, in of core b; and in of core a.
    m_x = tl.arange(0, ROWS * IN_C * IN_B)
    row_x = (tl.program_id(0) * ROWS + m_x // (IN_C * IN_B)).to(tl.int64)
    # Axes of core c: in and summed bond; and out.
    m_c, to_c = tl.arange(0, IN_C * BC), tl.arange(0, OUT_C)
    total = tl.zeros((ROWS * OUT_A * OUT_B, OUT_C), dtype=ACCUMULATE)
    for start in range(0, in_c, IN_C):
        x_at_c, x_at_b = start + m_x // IN_B % IN_C, m_x % IN_B
        mask_x = ((row_x < rows) & (x_at_c < in_c) & (x_at_b < in_b))[:, None] & (from_a < in_a)[None, :]
        offsets_x = (row_x * x_row + x_at_c * x_c + x_at_b * x_b)[:, None] + (from_a * x_a)[None, :]
        block = tl.load(x + offsets_x, mask=mask_x, other=0.0)
        after_a = _dot(block, core_a, None, ACCUMULATE, PRECISION, WIDENS).to(dtype)
        if MIDDLE:
            axes_a = tl.permute(tl.reshape(after_a, (ROWS * IN_C, IN_B, AB, OUT_A)), (0, 3, 1, 2))
            before_b = tl.reshape(axes_a, (ROWS * IN_C * OUT_A, IN_B * AB))
            after_b = _dot(before_b, core_b, None, ACCUMULATE, PRECISION, WIDENS).to(dtype)
            axes_b = tl.permute(tl.reshape(after_b, (ROWS, IN_C, OUT_A, BC, OUT_B)), (0, 2, 4, 1, 3))
            before_c = tl.reshape(axes_b, (ROWS * OUT_A * OUT_B, IN_C * BC))
        else:
            axes_a = tl.permute(tl.reshape(after_a, (ROWS, IN_C, BC, OUT_A)), (0, 3, 1, 2))
            before_c = tl.reshape(axes_a, (ROWS * OUT_A * OUT_B, IN_C * BC))
        from_c, summed_c = start + m_c // BC, m_c % BC
        mask_c = ((from_c < in_c) & (summed_c < bond_bc))[:, None] & (to_c < out_c)[None, :]
        offsets_c = (from_c * c_in + summed_c * c_summed)[:, None] + (to_c * c_out)[None, :]
        core_c = tl.load(c + offsets_c, mask=mask_c, other=0.0)
        total = _dot(before_c, core_c, total, ACCUMULATE, PRECISION, WIDENS)
    # Axes of the output block: row, out of core a, out of core b; and out of core c.
    m_y = tl.arange(0, ROWS * OUT_A * OUT_B)
    row_y = (tl.program_id(0) * ROWS + m_y // (OUT_A * OUT_B)).to(tl.int64)
    y_at_a, y_at_b = first_out + m_y // OUT_B % OUT_A, m_y % OUT_B
    mask_y = ((row_y < rows) & (y_at_a < out_a) & (y_at_b < out_b))[:, None] & (to_c < out_c)[None, :]
    offsets_y = (row_y * y_row + y_at_a * y_a + y_at_b * y_b)[:, None] + (to_c * y_c)[None, :]
    tl.store(y + offsets_y, total.to(dtype), mask=mask_y)
