# SPDX-License-Identifier: Apache-2.0
"""The law of a row of logits in Triton, bit for bit pyspec/spec/pipeline.py: sample, verify_tree, build_tree.

A program holds one row and goes over it in blocks. The order of tokens (value descending, id ascending) is
never sorted as a whole: a cut is the key and the id of the last token kept, found by bisection of the keys.
For top-k tokens are counted. For top-p masses are added in any order; where rounding could change a
decision (within VOCAB * 2^-51 of the limit), the tokens are walked value by value in the order of the
specification instead. Launch with OPTIONS.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from pyspec.spec import noise as noise_law
from pyspec.spec import pipeline as law

from .noise import exp2

_LOG2E = tl.constexpr(noise_law.LOG2E)
_TINY = tl.constexpr(law.TINY)
_INF = tl.constexpr(float("inf"))
_LOWEST_KEY = tl.constexpr(-0x7F800001)  # of -inf
_HIGHEST_KEY = tl.constexpr(0x7FFFFFFF)
_SUM_BLOCK = tl.constexpr(8 * law.LANES)  # tokens that `fold_lanes` takes at once

# Fused multiply-adds have other bits. Left to itself ptxas stops at 128 registers and spills some twenty;
# it needs 176.
OPTIONS = {"enable_fp_fusion": False, "maxnreg": 255}


@dataclass(frozen=True)
class Config:
    """How a row is read: tokens of a block and warps."""

    block: int
    num_warps: int


def pick_config(vocab: int) -> Config:
    """Blocks of a row: 4 tokens a thread (8 of them, with their float64 noise, did not fit the registers)."""
    block = min(1024, max(256, triton.next_power_of_2(vocab)))
    return Config(block, block // 128)


def sort_size(num: int) -> int:
    """Slots in which `num` tokens are sorted."""
    return max(32, triton.next_power_of_2(num)) if num else 0


@triton.jit
def load_row(row_ptr, ids, vocab, infinite, CLEAN: tl.constexpr):
    """Values of tokens, cleaned as the law says (`infinite`: the row has +inf); -inf beyond the row."""
    z = tl.load(row_ptr + ids, mask=ids < vocab, other=-_INF)
    if CLEAN:
        z = tl.where(z != z, -_INF, z)
        z = tl.where(tl.abs(z) < _TINY, 0.0, z)
        z = tl.where(infinite, tl.where(z == _INF, 0.0, -_INF), z)
    return z


@triton.jit
def order_key(z):
    """Integers in the order of floats (without NaN); -0 as 0."""
    bits = (z + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_value(key):
    """The float of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def first_best(row_ptr, vocab, BLOCK: tl.constexpr):
    """The largest cleaned value (f32), its first token, and whether it is +inf and counts as 0."""
    lane_best = tl.full([BLOCK], -_INF, tl.float32)
    lane_token = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        z = load_row(row_ptr, ids, vocab, False, True)
        lane_token = tl.where(z > lane_best, ids, lane_token)
        lane_best = tl.maximum(lane_best, z)
    best = tl.max(lane_best, axis=0)
    token = tl.min(tl.where(lane_best == best, lane_token, _HIGHEST_KEY), axis=0)
    infinite = best == _INF
    return tl.where(infinite, 0.0, best), token, infinite


@triton.jit
def fold_lanes(total, x):
    """total [32] plus the 8 rows of x [256] of 32 lanes, one after another."""
    even, odd = tl.split(tl.permute(tl.reshape(x, [2, 2, 2, 32]), (3, 0, 1, 2)))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x1, x5 = tl.split(x15)
    x2, x6 = tl.split(x26)
    x3, x7 = tl.split(x37)
    return total + x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7


@triton.jit
def add_halves(x, HALF: tl.constexpr):
    """x [2 HALF] as x[i] + x[i + HALF], [HALF]."""
    left, right = tl.split(tl.permute(tl.reshape(x, [2, HALF]), (1, 0)))
    return left + right


@triton.jit
def sum_lanes(total):
    """The sum of 32 lanes: lane i + lane i + half."""
    x = add_halves(add_halves(add_halves(add_halves(total, 16), 8), 4), 2)
    left, right = tl.split(x)
    return left + right


@triton.jit
def kept(key, ids, cut_key, cut_id):
    """Whether a token is not after the cut in the order."""
    return (key > cut_key) | ((key == cut_key) & (ids <= cut_id))


@triton.jit
def sum_exp2(row_ptr, vocab, best, infinite, scale, cut_key, cut_id):
    """The sum of 2^((z - best) scale) of the row in the fixed order; -inf for z after the cut."""
    total = tl.zeros([32], tl.float64)
    for start in range(0, vocab, _SUM_BLOCK):
        ids = start + tl.arange(0, _SUM_BLOCK)
        z = load_row(row_ptr, ids, vocab, infinite, True)
        z = tl.where(kept(order_key(z), ids, cut_key, cut_id), z, -_INF)
        w = exp2((z.to(tl.float64) - best) * scale)
        total = fold_lanes(total, tl.where(ids < vocab, w, 0.0))
    return sum_lanes(total)


@triton.jit
def id_of_equal(
    row_ptr, vocab, infinite, cut_key, cut_id, key, rank, CLEAN: tl.constexpr, BLOCK: tl.constexpr
):
    """The id of the rank-th (from 1) kept token with a key, and how many there are."""
    seen = tl.full([], 0, tl.int32)
    found = tl.full([], -1, tl.int32)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        k = order_key(load_row(row_ptr, ids, vocab, infinite, CLEAN))
        equal = ((k == key) & kept(k, ids, cut_key, cut_id) & (ids < vocab)).to(tl.int32)
        within = (equal > 0) & (seen + tl.cumsum(equal, axis=0) <= rank)
        found = tl.maximum(found, tl.max(tl.where(within, ids, -1), axis=0))
        seen += tl.sum(equal, axis=0)
    return found, seen


@triton.jit
def bisect(
    row_ptr, vocab, best, infinite, cut_key, cut_id, scale, limit, bound,
    MASS: tl.constexpr, CLEAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The lowest key with less than `limit` (f64) above it, what is above, whether rounding might decide.

    What is above counts tokens, or with MASS adds their weights. Three keys are tried per pass: 16 passes,
    of which the later ones weigh only blocks that have a token between the bounds.
    """
    low = cut_key.to(tl.int64) - 1
    high = tl.full([], _HIGHEST_KEY, tl.int64)
    above = tl.full([], 0.0, tl.float64)
    unsure = tl.full([], 0, tl.int32)
    while high - low > 1:
        key2 = (low + high) >> 1
        key1, key3 = (low + key2) >> 1, (key2 + high) >> 1
        part1 = tl.zeros([BLOCK], tl.float64 if MASS else tl.int32)  # by lane: one reduction per pass
        part2, part3 = part1, part1
        for start in range(0, vocab, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            z = load_row(row_ptr, ids, vocab, infinite, CLEAN)
            k = order_key(z)
            over1 = (
                (k > key1.to(tl.int32))
                & (k <= high.to(tl.int32))
                & kept(k, ids, cut_key, cut_id)
                & (ids < vocab)
            )
            over2, over3 = over1 & (k > key2.to(tl.int32)), over1 & (k > key3.to(tl.int32))
            if MASS:
                if tl.max(over1.to(tl.int32), axis=0) > 0:
                    w = exp2((z.to(tl.float64) - best) * scale)
                    part1 += tl.where(over1, w, 0.0)
                    part2 += tl.where(over2, w, 0.0)
                    part3 += tl.where(over3, w, 0.0)
            else:
                part1 += over1.to(tl.int32)
                part2 += over2.to(tl.int32)
                part3 += over3.to(tl.int32)
        sum1 = above + tl.sum(part1, axis=0).to(tl.float64)
        sum2 = above + tl.sum(part2, axis=0).to(tl.float64)
        sum3 = above + tl.sum(part3, axis=0).to(tl.float64)
        if MASS:
            near = (
                (tl.abs(sum1 - limit) <= bound)
                | (tl.abs(sum2 - limit) <= bound)
                | (tl.abs(sum3 - limit) <= bound)
            )
            unsure = unsure | near.to(tl.int32)
        low = tl.where(sum1 < limit, low, tl.where(sum2 < limit, key1, tl.where(sum3 < limit, key2, key3)))
        above = tl.where(
            sum1 < limit, sum1, tl.where(sum2 < limit, sum2, tl.where(sum3 < limit, sum3, above))
        )
        high = tl.where(sum1 < limit, key1, tl.where(sum2 < limit, key2, tl.where(sum3 < limit, key3, high)))
    return high.to(tl.int32), above, unsure


@triton.jit
def cut_count(row_ptr, vocab, infinite, count, CLEAN: tl.constexpr, BLOCK: tl.constexpr):
    """The cut after the first `count` tokens of the order, 1 <= count <= vocab."""
    everything = tl.full([], _LOWEST_KEY, tl.int32)
    key, above, _ = bisect(
        row_ptr, vocab, 0.0, infinite, everything, vocab, 0.0, count.to(tl.float64), 0.0, False, CLEAN, BLOCK
    )
    rank = count - above.to(tl.int32)
    last, _ = id_of_equal(row_ptr, vocab, infinite, everything, vocab, key, rank, CLEAN, BLOCK)
    return key, last


@triton.jit
def walk_mass(row_ptr, vocab, best, infinite, cut_key, cut_id, scale, limit, BLOCK: tl.constexpr):
    """The last key and how many of its tokens are kept, their weights added one by one in the order."""
    mass = tl.full([], 0.0, tl.float64)
    key = tl.full([], _HIGHEST_KEY, tl.int32)
    taken = tl.full([], 0, tl.int32)
    going = tl.full([], 1, tl.int32)
    while going > 0:
        lower = tl.full([], _LOWEST_KEY - 1, tl.int32)
        for start in range(0, vocab, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            k = order_key(load_row(row_ptr, ids, vocab, infinite, True))
            lower = tl.maximum(
                lower, tl.max(tl.where((k < key) & kept(k, ids, cut_key, cut_id), k, lower), axis=0)
            )
        going = (lower >= _LOWEST_KEY).to(tl.int32)
        if going > 0:
            key = lower
            taken = tl.full([], 0, tl.int32)
            _, equal = id_of_equal(row_ptr, vocab, infinite, cut_key, cut_id, key, 0, True, BLOCK)
            w = exp2((key_value(key).to(tl.float64) - best) * scale)
            while (taken < equal) & (mass < limit):
                mass += w
                taken += 1
            going = (mass < limit).to(tl.int32)
    return key, taken


@triton.jit
def cut_mass(row_ptr, vocab, best, infinite, cut_key, cut_id, inv_t, top_p, BLOCK: tl.constexpr):
    """The cut after the tokens before which less than top_p of the kept mass lies."""
    scale = _LOG2E * inv_t
    limit = top_p * sum_exp2(row_ptr, vocab, best, infinite, scale, cut_key, cut_id)
    bound = limit * (vocab + 64).to(tl.float64) * (2.0**-51)
    key, above, unsure = bisect(
        row_ptr, vocab, best, infinite, cut_key, cut_id, scale, limit, bound, True, True, BLOCK
    )
    w = exp2((key_value(key).to(tl.float64) - best) * scale)
    ratio = tl.minimum((limit - above) / w, 2.0**30)  # kept are the j = 0, 1 ... with above + j w < limit
    whole = tl.floor(ratio)
    near = tl.minimum(ratio - whole, 1.0 - (ratio - whole)) * w <= bound
    rank = whole.to(tl.int32) + 1
    if (unsure > 0) | near:
        key, rank = walk_mass(row_ptr, vocab, best, infinite, cut_key, cut_id, scale, limit, BLOCK)
    last, _ = id_of_equal(row_ptr, vocab, infinite, cut_key, cut_id, key, rank, True, BLOCK)
    return key, last


@triton.jit
def first_in_order(
    row_ptr, scratch_ptr, vocab, infinite, num, CLEAN: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """The first `num` tokens of the order, num <= SIZE a power of two: ids and values [SIZE].

    scratch [num] i32 of this program alone: ids by position, until they are sorted.
    """
    key, last = cut_count(row_ptr, vocab, infinite, num, CLEAN, BLOCK)
    seen = tl.full([], 0, tl.int32)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        keep = kept(order_key(load_row(row_ptr, ids, vocab, infinite, CLEAN)), ids, key, last) & (ids < vocab)
        place = seen + tl.cumsum(keep.to(tl.int32), axis=0) - 1
        tl.store(scratch_ptr + place, ids, mask=keep)
        seen += tl.sum(keep.to(tl.int32), axis=0)
    tl.debug_barrier()  # what other threads stored is read
    place = tl.arange(0, SIZE)
    ids = tl.load(scratch_ptr + place, mask=place < num, other=_HIGHEST_KEY)
    tl.debug_barrier()  # and may be written over
    keys = order_key(load_row(row_ptr, ids, vocab, infinite, CLEAN)).to(tl.int64)
    keys = tl.where(place < num, ((-1 - keys) << 32) | ids.to(tl.int64), 0x7FFFFFFFFFFFFFFF)
    keys = tl.sort(keys)
    return (keys & 0xFFFFFFFF).to(tl.int32), key_value((-1 - (keys >> 32)).to(tl.int32))


@triton.jit
def request_of(cu_t_ptr, requests, t, BLOCK_B: tl.constexpr):
    """The request that node t belongs to: as many end at or before t, empty ones among them."""
    offs_b = tl.arange(0, BLOCK_B)
    end = tl.load(cu_t_ptr + 1 + offs_b, mask=offs_b < requests, other=_HIGHEST_KEY)
    return tl.sum((end <= t).to(tl.int32), axis=0)
