# SPDX-License-Identifier: Apache-2.0
"""The pick from a row of logits in Triton, bit for bit pyspec/spec/pipeline.py: typical-p and the draw.

The kept set of typical-p is an interval around the entropy: a centre and a radius, found by bisection of the
distances, whose masses are added in any order. Where rounding could change a decision, the tokens are
walked value by value outward from the centre, in the order of the specification. Launch with pipeline.OPTIONS.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pyspec.spec import noise as noise_law
from pyspec.spec import pipeline as law

from .noise import exp2, exponential, log
from .pipeline import (
    cut_count,
    cut_mass,
    first_best,
    first_in_order,
    fold_lanes,
    id_of_equal,
    kept,
    key_value,
    load_row,
    order_key,
    sum_exp2,
    sum_lanes,
)

_LOG2E = tl.constexpr(noise_law.LOG2E)
_EXP2_LOWEST = tl.constexpr(noise_law.EXP2_LOWEST)
_TINY = tl.constexpr(law.TINY)
_GREEDY_BELOW = tl.constexpr(law.GREEDY_BELOW)
_INF = tl.constexpr(float("inf"))
_INF_BITS = tl.constexpr(0x7FF0000000000000)
_MAX_GUMBEL = tl.constexpr(23.0)  # above the largest noise, that of word 0: 22.88
_LOWEST_KEY = tl.constexpr(-0x7F800001)  # of -inf
_HIGHEST_KEY = tl.constexpr(0x7FFFFFFF)
_SUM_BLOCK = tl.constexpr(8 * law.LANES)  # tokens that `fold_lanes` takes at once


@triton.jit
def filtered(z, ids, vocab, best, cut_key, cut_id, inv_t, floor):
    """Whether top-k, top-p and min-p have kept tokens of cleaned values z."""
    d = (z.to(tl.float64) - best) * inv_t
    return (ids < vocab) & (z != -_INF) & kept(order_key(z), ids, cut_key, cut_id) & (d >= floor)


@triton.jit
def mass_and_mean(row_ptr, vocab, best, infinite, cut_key, cut_id, inv_t, floor):
    """The sum of the kept weights w in the fixed order, and that of w e over it: e of the entropy."""
    scale = _LOG2E * inv_t
    total, products = tl.zeros([32], tl.float64), tl.zeros([32], tl.float64)
    for start in range(0, vocab, _SUM_BLOCK):
        ids = start + tl.arange(0, _SUM_BLOCK)
        z = load_row(row_ptr, ids, vocab, infinite, True)
        keep = filtered(z, ids, vocab, best, cut_key, cut_id, inv_t, floor)
        e = tl.where(keep, (z.to(tl.float64) - best) * scale, 0.0)
        w = tl.where(keep, exp2(e), 0.0)
        total = fold_lanes(total, w)
        products = fold_lanes(products, tl.where(e > _EXP2_LOWEST, w * e, 0.0))
    mass = sum_lanes(total)
    return mass, sum_lanes(products) / mass


@triton.jit
def bisect_distance(
    row_ptr, vocab, best, infinite, cut_key, cut_id, inv_t, floor, centre, limit, bound, BLOCK: tl.constexpr
):  # fmt: skip
    """The least distance up to which the weights reach `limit`, and whether rounding might decide."""
    scale = _LOG2E * inv_t
    low = tl.full([], -1, tl.int64)  # of the bits of a distance: those of positive floats have their order
    high = tl.full([], _INF_BITS, tl.int64)
    unsure = tl.full([], 0, tl.int32)
    while high - low > 1:
        bits2 = low + ((high - low) >> 1)
        bits1, bits3 = low + ((bits2 - low) >> 1), bits2 + ((high - bits2) >> 1)
        part1 = tl.zeros([BLOCK], tl.float64)
        part2, part3 = part1, part1
        for start in range(0, vocab, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            z = load_row(row_ptr, ids, vocab, infinite, True)
            keep = filtered(z, ids, vocab, best, cut_key, cut_id, inv_t, floor)
            e = tl.where(keep, (z.to(tl.float64) - best) * scale, 0.0)
            bits = tl.abs(e - centre).to(tl.int64, bitcast=True)
            w = tl.where(keep & (bits <= bits3), exp2(e), 0.0)
            part1 += tl.where(bits <= bits1, w, 0.0)
            part2 += tl.where(bits <= bits2, w, 0.0)
            part3 += w
        sum1, sum2, sum3 = tl.sum(part1, axis=0), tl.sum(part2, axis=0), tl.sum(part3, axis=0)
        near = (tl.abs(sum1 - limit) <= bound) | (tl.abs(sum2 - limit) <= bound)
        unsure = unsure | (near | (tl.abs(sum3 - limit) <= bound)).to(tl.int32)
        high_next = tl.where(
            sum1 >= limit, bits1, tl.where(sum2 >= limit, bits2, tl.where(sum3 >= limit, bits3, high))
        )
        low = tl.where(
            sum1 >= limit, low, tl.where(sum2 >= limit, bits1, tl.where(sum3 >= limit, bits2, bits3))
        )
        high = high_next
    return high.to(tl.float64, bitcast=True), unsure


@triton.jit
def walk_outward(
    row_ptr, vocab, best, infinite, cut_key, cut_id, inv_t, floor, centre, limit, BLOCK: tl.constexpr
):  # fmt: skip
    """The distance at which the weights, added one by one outward from the centre, reach `limit`."""
    scale = _LOG2E * inv_t
    mass, radius = tl.full([], 0.0, tl.float64), tl.full([], 0.0, tl.float64)
    above = tl.full([], _LOWEST_KEY - 1, tl.int32)  # keys that have been added
    below = tl.full([], _HIGHEST_KEY, tl.int32)
    going = tl.full([], 1, tl.int32)
    while going > 0:
        up, down = tl.full([], _HIGHEST_KEY, tl.int32), tl.full([], _LOWEST_KEY - 1, tl.int32)
        for start in range(0, vocab, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            z = load_row(row_ptr, ids, vocab, infinite, True)
            keep = filtered(z, ids, vocab, best, cut_key, cut_id, inv_t, floor)
            key, e = order_key(z), (z.to(tl.float64) - best) * scale
            up = tl.minimum(up, tl.min(tl.where(keep & (e >= centre) & (key > above), key, up), axis=0))
            down = tl.maximum(down, tl.max(tl.where(keep & (e < centre) & (key < below), key, down), axis=0))
        has_up, has_down = up < _HIGHEST_KEY, down >= _LOWEST_KEY
        to_up = tl.abs((key_value(up).to(tl.float64) - best) * scale - centre)
        to_down = tl.abs((key_value(down).to(tl.float64) - best) * scale - centre)
        takes_up = has_up & (~has_down | (to_up <= to_down))
        going = (has_up | has_down).to(tl.int32)
        if going > 0:
            key = tl.where(takes_up, up, down)
            above, below = tl.where(takes_up, up, above), tl.where(takes_up, below, down)
            radius = tl.where(takes_up, to_up, to_down)
            _, equal = id_of_equal(row_ptr, vocab, infinite, cut_key, cut_id, key, 0, True, BLOCK)
            w = exp2((key_value(key).to(tl.float64) - best) * scale)
            taken = tl.full([], 0, tl.int32)
            while (taken < equal) & (mass < limit):
                mass += w
                taken += 1
            going = (mass < limit).to(tl.int32)
    return radius


@triton.jit
def typical(
    row_ptr, vocab, best, infinite, cut_key, cut_id, inv_t, floor, typical_p, BLOCK: tl.constexpr,
    PLANTED_BUG: tl.constexpr,
):  # fmt: skip
    """Centre and radius of what typical-p keeps of the tokens that the other filters have kept."""
    mass, centre = mass_and_mean(row_ptr, vocab, best, infinite, cut_key, cut_id, inv_t, floor)
    limit = typical_p * mass
    bound = mass * (vocab + 64).to(tl.float64) * (2.0**-51)
    if PLANTED_BUG == "no bound":
        bound = bound * 0
    radius, unsure = bisect_distance(
        row_ptr, vocab, best, infinite, cut_key, cut_id, inv_t, floor, centre, limit, bound, BLOCK
    )
    if unsure > 0:
        radius = walk_outward(
            row_ptr, vocab, best, infinite, cut_key, cut_id, inv_t, floor, centre, limit, BLOCK
        )
    return centre, radius


@triton.jit
def draw(
    row_ptr, vocab, best, infinite, cut_key, cut_id, inv_t, floor, centre, radius, seed, stream, position,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """argmax of d + noise over the kept tokens, ties to the lowest id."""
    winner = tl.full([], 0, tl.int32)
    most = tl.full([], -_INF, tl.float64)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        z = load_row(row_ptr, ids, vocab, infinite, True)
        d = (z.to(tl.float64) - best) * inv_t
        near = tl.abs((z.to(tl.float64) - best) * (_LOG2E * inv_t) - centre) <= radius
        d = tl.where(kept(order_key(z), ids, cut_key, cut_id) & (d >= floor) & near, d, -_INF)
        if tl.max(d, axis=0) + _MAX_GUMBEL >= most:
            score = d - log(exponential(start, seed, stream, position, BLOCK))
            top = tl.max(score, axis=0)
            first = tl.min(tl.where(score == top, ids, _HIGHEST_KEY), axis=0)
            winner = tl.where(top > most, first, winner)
            most = tl.maximum(most, top)
    return winner


@triton.jit
def filters_of(
    from_ptr, vocab, centre, infinite, temperature, top_k, top_p, min_p, typical_p, BLOCK: tl.constexpr,
    PLANTED_BUG: tl.constexpr,
):  # fmt: skip
    """What the filters of a law with noise keep: the cut, 1 / temperature, the floor of d, centre and radius."""
    everything = tl.full([], _LOWEST_KEY, tl.int32)
    inv_t = 1.0 / temperature.to(tl.float64)
    cut_key, cut_id = everything, vocab
    if top_k > 0:
        cut_key, cut_id = cut_count(from_ptr, vocab, infinite, top_k, True, BLOCK)
    if top_p < 1:
        cut_key, cut_id = cut_mass(
            from_ptr, vocab, centre, infinite, cut_key, cut_id, inv_t, top_p.to(tl.float64), BLOCK
        )
    floor = tl.where(min_p >= _TINY, log(tl.maximum(min_p, _TINY).to(tl.float64)), -_INF)
    middle, radius = tl.full([], 0.0, tl.float64), tl.full([], _INF, tl.float64)
    if typical_p < 1:
        middle, radius = typical(
            from_ptr, vocab, centre, infinite, cut_key, cut_id, inv_t, floor, typical_p.to(tl.float64),
            BLOCK, PLANTED_BUG,
        )  # fmt: skip
    return cut_key, cut_id, inv_t, floor, middle, radius


@triton.jit
def report(
    row_ptr, vocab, best, infinite, alive, token, token_ptr, logprob_ptr, top_tokens_ptr, top_logprobs_ptr,
    num, LOGPROBS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Stores a token with its logprob in a row, and the first `num` tokens of that in order with theirs."""
    tl.store(token_ptr, token)
    logprob = tl.full([], 0.0, tl.float32)
    if LOGPROBS:
        alive = alive & (best != -_INF)
        centre = tl.where(best != -_INF, best, 0.0).to(tl.float64)
        everything = tl.full([], _LOWEST_KEY, tl.int32)
        log_sum = log(sum_exp2(row_ptr, vocab, centre, infinite, _LOG2E, everything, vocab))
        value = load_row(row_ptr, token, vocab, infinite, True).to(tl.float64)
        logprob = (value - centre - log_sum).to(tl.float32)
        if SIZE > 0:
            ids, values = first_in_order(row_ptr, top_tokens_ptr, vocab, infinite, num, True, SIZE, BLOCK)
            place = tl.arange(0, SIZE)
            logprobs = (values.to(tl.float64) - centre - log_sum).to(tl.float32)
            tl.store(top_tokens_ptr + place, tl.where(alive, ids, place), mask=place < num)
            tl.store(top_logprobs_ptr + place, tl.where(alive, logprobs, float("nan")), mask=place < num)
    tl.store(logprob_ptr, tl.where(alive, logprob, float("nan")))


@triton.jit
def pick(
    row_ptr, edited_ptr, vocab, position, temperature, top_k, top_p, min_p, typical_p, seed, stream,
    token_ptr, logprob_ptr, top_tokens_ptr, top_logprobs_ptr, num, LOGPROBS: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PLANTED_BUG: tl.constexpr,
):  # fmt: skip
    """A token picked from one row, or from its edited one, its logprob in the raw one, and the first
    num <= SIZE tokens of that in order with theirs (SIZE 0: none).
    """
    from_ptr = row_ptr
    if edited_ptr is not None and PLANTED_BUG != "raw row":
        from_ptr = edited_ptr
    best, token, infinite = first_best(from_ptr, vocab, BLOCK)
    alive = best != -_INF
    token = tl.where(alive, token, 0)
    centre = tl.where(alive, best, 0.0).to(tl.float64)
    if alive & (temperature >= _GREEDY_BELOW):
        cut_key, cut_id, inv_t, floor, middle, radius = filters_of(
            from_ptr, vocab, centre, infinite, temperature, top_k, top_p, min_p, typical_p, BLOCK, PLANTED_BUG
        )
        token = draw(
            from_ptr, vocab, centre, infinite, cut_key, cut_id, inv_t, floor, middle, radius, seed, stream,
            position, BLOCK,
        )  # fmt: skip
    if LOGPROBS and edited_ptr is not None:
        best, _, infinite = first_best(row_ptr, vocab, BLOCK)
    report(
        row_ptr, vocab, best, infinite, alive, token, token_ptr, logprob_ptr, top_tokens_ptr,
        top_logprobs_ptr, num, LOGPROBS, SIZE, BLOCK,
    )  # fmt: skip
