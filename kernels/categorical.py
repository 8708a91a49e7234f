# SPDX-License-Identifier: Apache-2.0
"""Drawing a token from the weights of a row in Triton, bit for bit pyspec/spec/categorical.py.

Sums in a fixed order are chains: the sums of the 32 lanes, and then of the lane that a draw falls into, are
added one by one from memory that belongs to the program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pyspec.spec import noise as noise_law
from pyspec.spec import pipeline as law
from pyspec.spec.categorical import LEAST_EXPONENT

from .noise import exp2
from .pipeline import fold_lanes, load_row

_LOG2E = tl.constexpr(noise_law.LOG2E)
_LEAST_EXPONENT = tl.constexpr(LEAST_EXPONENT)
_SUM_BLOCK = tl.constexpr(8 * law.LANES)  # tokens that `fold_lanes` takes at once
LANE_BLOCK = tl.constexpr(256)  # weights of a lane that are computed at once
SCRATCH = 256  # float64 of every program


@triton.jit
def plain_weights(row_ptr, ids, vocab, best, first, infinite, inv_t, taken_ptr, taken):
    """The weights of softmax(z / temperature) of tokens [..], 0 for the `taken` first ones of taken_ptr.

    inv_t is 0 at temperature 0, where token `first` has all the weight.
    """
    z = load_row(row_ptr, ids, vocab, infinite, True)
    e = (z.to(tl.float64) - best) * (_LOG2E * inv_t)
    w = tl.where(e >= _LEAST_EXPONENT, exp2(e), 0.0)
    w = tl.where(inv_t == 0, (ids == first).to(tl.float64), w)
    for c in range(0, taken):
        w = tl.where(ids == tl.load(taken_ptr + c), 0.0, w)
    return tl.where(ids < vocab, w, 0.0)


@triton.jit
def lane_sums(row_ptr, vocab, best, first, infinite, inv_t, taken_ptr, taken):
    """The sums of the lanes (id mod 32) [32], each a chain of additions."""
    total = tl.zeros([32], tl.float64)
    for start in range(0, vocab, _SUM_BLOCK):
        ids = start + tl.arange(0, _SUM_BLOCK)
        total = fold_lanes(
            total, plain_weights(row_ptr, ids, vocab, best, first, infinite, inv_t, taken_ptr, taken)
        )
    return total


@triton.jit
def lane_of(scratch_ptr, lanes, u):
    """The lane that u falls into by the sums of the lanes, -1 if there are none; u's target; the sum of the
    lanes before.
    """
    tl.debug_barrier()  # what lies there has been read
    tl.store(scratch_ptr + tl.arange(0, 32), lanes)
    tl.debug_barrier()
    end = tl.full([], 0.0, tl.float64)
    for one in range(0, 32):
        end += tl.load(scratch_ptr + one)
    target = u * end
    ends, before = tl.full([], 0.0, tl.float64), tl.full([], 0.0, tl.float64)
    lane = tl.full([], -1, tl.int32)
    searching = tl.full([], 1, tl.int32)
    for one in range(0, 32):
        mass = tl.load(scratch_ptr + one)
        takes = (searching > 0) & (mass > 0)
        before = tl.where(takes, ends, before)
        lane = tl.where(takes, one, lane)
        ends += mass
        searching = tl.where(takes & (target < ends), 0, searching)
    return lane, target, before


@triton.jit
def draw_plain(
    row_ptr, scratch_ptr, lanes, vocab, best, first, infinite, inv_t, taken_ptr, taken, u,
    PLANTED_BUG: tl.constexpr,
):  # fmt: skip
    """The token that u draws by these weights, whose lane sums are given; -1: there are none."""
    lane, target, before = lane_of(scratch_ptr, lanes, u)
    rest = target if PLANTED_BUG == "whole target" else target - before
    token = tl.full([], -1, tl.int32)
    below = tl.full([], 0.0, tl.float64)
    start = tl.where(lane >= 0, lane, vocab)
    while start < vocab:
        ids = start + 32 * tl.arange(0, LANE_BLOCK)
        w = plain_weights(row_ptr, ids, vocab, best, first, infinite, inv_t, taken_ptr, taken)
        tl.debug_barrier()
        tl.store(scratch_ptr + tl.arange(0, LANE_BLOCK), w)
        tl.debug_barrier()
        place = tl.full([], 0, tl.int32)
        while (place < LANE_BLOCK) & (start + 32 * place < vocab) & (rest >= below):
            one_weight = tl.load(scratch_ptr + place)
            below += one_weight
            token = tl.where(one_weight > 0, start + 32 * place, token)
            place += 1
        start = tl.where(rest < below, vocab, start + 32 * LANE_BLOCK)
    return token


@triton.jit
def stored_sums(weights_ptr, vocab):
    """lane_sums of weights [vocab] f64 in memory."""
    total = tl.zeros([32], tl.float64)
    for start in range(0, vocab, _SUM_BLOCK):
        ids = start + tl.arange(0, _SUM_BLOCK)
        total = fold_lanes(total, tl.load(weights_ptr + ids, mask=ids < vocab, other=0.0))
    return total


@triton.jit
def draw_stored(weights_ptr, scratch_ptr, vocab, u):
    """The token that u draws by weights [vocab] f64 in memory; -1: there are none."""
    lane, target, before = lane_of(scratch_ptr, stored_sums(weights_ptr, vocab), u)
    rest, below = target - before, tl.full([], 0.0, tl.float64)
    token = tl.full([], -1, tl.int32)
    i = tl.where(lane >= 0, lane, vocab)
    while (i < vocab) & (rest >= below):
        w = tl.load(weights_ptr + i)
        below += w
        token = tl.where(w > 0, i, token)
        i += 32
    return token
