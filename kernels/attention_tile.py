# SPDX-License-Identifier: Apache-2.0
"""tree_attention in Triton: what a program does with a tile of slots, who sees what, how states are joined.

A state of rows is (max, sum, acc): exponents of 2 below max, so weights are 2^(s - max); sum of the
weights; weights times V.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .narrow import from_e4m3
from .softcap import tanh

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
STAGES = tl.constexpr(3)  # one tile of K and V ahead, and one more of the page table


@triton.jit
def is_chain_up_to(parents_ptr, last_node):
    """Whether nodes 0 .. last_node are a chain."""
    breaks = 0
    for start in range(0, last_node + 1, 2048):  # few rounds for a long prefill, whose programs all ask
        offs = start + tl.arange(0, 2048)
        parent = tl.load(parents_ptr + offs, mask=offs <= last_node, other=-2)
        breaks += tl.sum(((parent != offs - 1) & (offs <= last_node)).to(tl.int32), 0)
    return breaks == 0


@triton.jit
def low_slots(parents_ptr, node, start, is_chain, L, window):
    """The first slot that a row's node sees through a window; walks from `start` to the root for the depths
    of a tree."""
    depth, ancestor = tl.where(is_chain, node, -1), start
    while tl.max(ancestor, 0) >= 0:
        depth += (ancestor >= 0).to(tl.int32)
        ancestor = tl.load(parents_ptr + ancestor, mask=ancestor >= 0, other=-1)
    return tl.maximum(L + depth - window + 1, 0)


@triton.jit
def ancestor_bits(parents_ptr, start, first, window, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """Bit j of a row's word says whether node first + j is the row's node or its ancestor in the window.

    Walks from `start` to the root, until all rows are before the tile. The k-th ancestor lies k positions
    back.
    """
    tl.static_assert(BLOCK_N <= 32)
    ancestor, steps, bits = start, 0, start * 0
    stop = tl.maximum(first, 0)
    while tl.max(ancestor, 0) >= stop:
        inside = (ancestor >= stop) & (ancestor < first + BLOCK_N)
        if WINDOW:
            inside = inside & (steps < window)
        bits |= tl.where(inside, 1 << (ancestor - first & 31), 0)
        ancestor = tl.load(parents_ptr + ancestor, mask=ancestor >= 0, other=-1)
        steps += 1
    return bits


@triton.jit
def not_finite(values):
    """Whether a slot [slots] of 16-bit values [slots, d] has one that is not finite: all bits of its
    exponent are 1."""
    exponent: tl.constexpr = 0x7F80 if values.dtype == tl.bfloat16 else 0x7C00
    broken = (values.to(tl.int16, bitcast=True) & exponent) == exponent
    return tl.max(broken.to(tl.int32), 1) > 0


@triton.jit
def load_tile(
    pages_ptr, page, offset, mask_n, stride_p, stride_s, D: tl.constexpr, BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr, half: tl.constexpr,
):  # fmt: skip
    """K or V of slots: [slots, BLOCK_D] of 16 bits; 8-bit values are exact in bf16 and scaled later."""
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    ptrs = pages_ptr + (page * stride_p + offset * stride_s)[:, None] + offs_d
    if MASKED and D < BLOCK_D:
        values = tl.load(ptrs, mask=mask_n[:, None] & (offs_d < D), other=0)
    elif MASKED:
        values = tl.load(ptrs, mask=mask_n[:, None], other=0)
    elif D < BLOCK_D:
        values = tl.load(ptrs, mask=offs_d < D, other=0)
    else:
        values = tl.load(ptrs)
    if values.dtype == tl.uint8:
        values = from_e4m3(values).to(half)
    elif values.dtype == tl.int8:
        values = values.to(tl.float32).to(half)
    return values


@triton.jit
def attend_tiles(
    q, q_low, row_max, row_sum, acc, first, last, end, L, low, high, start, window, parents_ptr, table_ptr,
    k_pages_ptr, v_pages_ptr, k_scale_ptr, v_scale_ptr, k_stride_p, k_stride_s, v_stride_p, v_stride_s,
    k_scale_stride_p, k_scale_stride_s, v_scale_stride_p, v_scale_stride_s, factor, inner,
    S: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr, PLANTED_BUG: tl.constexpr,
):  # fmt: skip
    """The state after the tiles of slots [first, last). Without MASKED every row sees all of their slots.

    Loops count from 0: with a first value known at run time only, the compiler loses the alignment of
    pointers in them. Addresses are hoisted out of the loop over 16-bit tiles that are seen whole alone: of
    others, they would be more than the registers hold.
    """
    for index in tl.range(
        0,
        tl.cdiv(last - first, BLOCK_N),
        num_stages=1 if MASKED else STAGES,
        disable_licm=MASKED or k_scale_ptr is not None,
    ):
        tile = first + index * BLOCK_N
        row_max, row_sum, acc = attend_tile(
            q, q_low, row_max, row_sum, acc, tile, end, L, low, high, start, window, parents_ptr, table_ptr,
            k_pages_ptr, v_pages_ptr, k_scale_ptr, v_scale_ptr, k_stride_p, k_stride_s, v_stride_p,
            v_stride_s, k_scale_stride_p, k_scale_stride_s, v_scale_stride_p, v_scale_stride_s, factor,
            inner, S, D, WINDOW, SOFTCAP, SPLIT, BLOCK_N, BLOCK_D, MASKED, PLANTED_BUG,
        )  # fmt: skip
    return row_max, row_sum, acc


@triton.jit
def attend_tile(
    q, q_low, row_max, row_sum, acc, tile, end, L, low, high, start, window, parents_ptr, table_ptr,
    k_pages_ptr, v_pages_ptr, k_scale_ptr, v_scale_ptr, k_stride_p, k_stride_s, v_stride_p, v_stride_s,
    k_scale_stride_p, k_scale_stride_s, v_scale_stride_p, v_scale_stride_s, factor, inner,
    S: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr, PLANTED_BUG: tl.constexpr,
):  # fmt: skip
    """One step of an online softmax over slots [tile, tile + BLOCK_N).

    Exponents are factor * s, with s = tanh(inner * s) before if SOFTCAP. With SPLIT, queries and weights
    are two 16-bit parts each.
    """
    slots = tile + tl.arange(0, BLOCK_N)
    mask_n = (slots < (2147483647 if PLANTED_BUG == "no mask" else end)) if MASKED else None
    page = tl.load(table_ptr + slots // S, mask=mask_n).to(tl.int64)
    offset = slots % S
    k = load_tile(k_pages_ptr, page, offset, mask_n, k_stride_p, k_stride_s, D, BLOCK_D, MASKED, q.dtype)
    s = tl.dot(q, tl.trans(k))
    if SPLIT:
        s = tl.dot(q_low, tl.trans(k), s)
    if k_scale_ptr is not None:
        scale = tl.load(k_scale_ptr + page * k_scale_stride_p + offset * k_scale_stride_s, mask=mask_n)
        s = s * scale[None, :]
    if SOFTCAP:
        s = tanh(s * inner)
    if MASKED:
        bits = ancestor_bits(parents_ptr, start, tile - L, window, WINDOW, BLOCK_N)
        is_ancestor = (bits[:, None] >> tl.arange(0, BLOCK_N)[None, :]) & 1 == 1
        seen = (slots[None, :] >= low[:, None]) & (slots[None, :] < high[:, None]) | is_ancestor
        s = tl.where(seen, s, float("-inf"))

    new_max = tl.maximum(row_max, tl.max(s, 1) * factor)
    base = tl.where(new_max == float("-inf"), 0.0, new_max)  # -inf less 0 and never less -inf: NaN
    weights = tl.exp2(tl.fma(s, tl.zeros_like(s) + factor, tl.zeros_like(s) - base[:, None]))
    decay = tl.exp2(row_max - base)
    row_sum = row_sum * decay + tl.sum(weights, 1)
    acc = acc * decay[:, None]

    v = load_tile(v_pages_ptr, page, offset, mask_n, v_stride_p, v_stride_s, D, BLOCK_D, MASKED, q.dtype)
    if v_scale_ptr is not None:
        scale = tl.load(v_scale_ptr + page * v_scale_stride_p + offset * v_scale_stride_s, mask=mask_n)
        weights = weights * scale[None, :]
    if (
        MASKED
    ):  # 0 * NaN is NaN: what a row does not see is kept from it, and whoever sees it has a sum of NaN
        broken = not_finite(v)
        row_sum += tl.where(tl.max((seen & broken[None, :]).to(tl.int32), 1) > 0, float("nan"), 0.0)
        weights = tl.where(seen, weights, 0.0)
        v = tl.where(broken[:, None], 0.0, v).to(q.dtype)
    weights_high = weights.to(q.dtype)
    acc = tl.dot(weights_high, v, acc)
    if SPLIT:
        acc = tl.dot((weights - weights_high.to(tl.float32)).to(q.dtype), v, acc)
    return new_max, row_sum, acc


@triton.jit
def fold(row_max, row_sum, acc, next_max, next_sum, next_acc):
    """The state of two spans, the earlier one first. A span without a visible slot changes no bit."""
    new_max = tl.maximum(row_max, next_max)
    base = tl.where(new_max == float("-inf"), 0.0, new_max)
    a, b = tl.exp2(row_max - base), tl.exp2(next_max - base)
    return new_max, row_sum * a + next_sum * b, acc * a[:, None] + next_acc * b[:, None]


@triton.jit
def fold_in_memory(
    total_ptr, state_ptr, row_max, row_sum, acc, is_first, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Folds a span into a program's total: rows [BLOCK_M] in memory, which the span's own rows follow.

    16 columns at a time: two whole accumulators are more than the registers hold.
    """
    offs_m, offs_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    rows = offs_m + tl.where(is_first, 0, BLOCK_M)  # the first span is the total
    tl.store(state_ptr + rows * 2, row_max)
    tl.store(state_ptr + rows * 2 + 1, row_sum)
    tl.store(total_ptr + rows[:, None] * BLOCK_D + offs_d[None, :], acc)
    tl.debug_barrier()  # other threads read it
    if not is_first:
        state_ptrs = state_ptr + offs_m * 2
        next_max, next_sum = tl.load(state_ptrs + 2 * BLOCK_M), tl.load(state_ptrs + 2 * BLOCK_M + 1)
        total_max, total_sum = tl.load(state_ptrs), tl.load(state_ptrs + 1)
        new_max, new_sum = total_max, total_sum
        tl.debug_barrier()  # and what they read is about to be written
        for column in tl.range(0, BLOCK_D, 16, num_stages=1, disable_licm=True):
            ptrs = total_ptr + column + offs_m[:, None] * BLOCK_D + tl.arange(0, 16)[None, :]
            total, added = tl.load(ptrs), tl.load(ptrs + BLOCK_M * BLOCK_D)
            new_max, new_sum, total = fold(total_max, total_sum, total, next_max, next_sum, added)
            tl.store(ptrs, total)
        tl.store(state_ptrs, new_max)
        tl.store(state_ptrs + 1, new_sum)
        tl.debug_barrier()


@triton.jit
def finish(row_max, row_sum, acc, sinks_ptr, head, mask_m, out_ptrs, mask, lse_ptrs):
    """Stores out and the natural lse; a sink is one more weight, without a value."""
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head, mask=mask_m, other=0.0) * LOG2_E
        new_max = tl.maximum(row_max, sink)
        decay = tl.exp2(row_max - new_max)
        row_max, row_sum, acc = new_max, row_sum * decay + tl.exp2(sink - new_max), acc * decay[:, None]
    tl.store(out_ptrs, (acc * (1.0 / row_sum)[:, None]).to(out_ptrs.dtype.element_ty), mask=mask)
    tl.store(lse_ptrs, (row_max + tl.log2(row_sum)) * LN_2, mask=mask_m)
