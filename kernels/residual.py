# SPDX-License-Identifier: Apache-2.0
"""What is still to be delivered through one node of a drawn tree, in Triton: the state of verify_drawn's walk.

Bit for bit the Residual of pyspec/spec/rejection.py. The weights of a node's two laws and what is kept of
nodes are in memory of the program; its threads meet at a barrier before and after each change.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pyspec.spec import pipeline as law

from .categorical import draw_stored, stored_sums
from .pipeline import fold_lanes, sum_lanes

_SUM_BLOCK = tl.constexpr(8 * law.LANES)
# What is kept of a node, as float64: what it is handed; its alpha, its mass and rho, once children have failed;
# the weight of its token while that is taken out of its parent's row; whether it has failed.
HANDED, ALPHA, MASS, RHO, WEIGHT, FAILED = (tl.constexpr(i) for i in range(6))
STATES = 6


@triton.jit
def put(ptr, value):
    """Stores what every thread has read and will read again."""
    tl.debug_barrier()
    tl.store(ptr, value)
    tl.debug_barrier()


@triton.jit
def sibling(parents_ptr, nodes, parent, after):
    """The first child of a node behind `after`, -1 if there is none."""
    i = after + 1
    while (i < nodes) & (tl.load(parents_ptr + i, mask=i < nodes, other=-2) != parent):
        i += 1
    return tl.where(i < nodes, i, -1)


@triton.jit
def residual(alpha, target, rho, draft):
    """max(0, alpha p - rho q), element by element."""
    m = alpha * target - rho * draft
    return tl.where(m > 0, m, 0.0)


@triton.jit
def residual_sum(target_ptr, draft_ptr, vocab, alpha, rho):
    """The sum of a row's residual in the fixed order."""
    total = tl.zeros([32], tl.float64)
    for start in range(0, vocab, _SUM_BLOCK):
        ids = start + tl.arange(0, _SUM_BLOCK)
        target = tl.load(target_ptr + ids, mask=ids < vocab, other=0.0)
        draft = tl.load(draft_ptr + ids, mask=ids < vocab, other=0.0)
        total = fold_lanes(total, residual(alpha, target, rho, draft))
    return sum_lanes(total)


@triton.jit
def begin(tokens_ptr, parents_ptr, drawn_ptr, state_ptr, target_ptr, draft_ptr, nodes, node, vocab, a):
    """alpha of a node whose law is there; the weights of deterministic children stand with them from here on."""
    alpha = a / sum_lanes(stored_sums(target_ptr, vocab))
    put(state_ptr + node * 6 + ALPHA, alpha)
    child = sibling(parents_ptr, nodes, node, node)
    while child >= 0:
        if tl.load(drawn_ptr + child) == 0:
            x = tl.load(tokens_ptr + child)
            put(state_ptr + child * 6 + WEIGHT, tl.load(target_ptr + x))
            put(target_ptr + x, tl.full([], 0.0, tl.float64))
            put(draft_ptr + x, tl.full([], 0.0, tl.float64))
        child = sibling(parents_ptr, nodes, node, child)
    return alpha


@triton.jit
def offer(
    tokens_ptr, parents_ptr, drawn_ptr, state_ptr, target_ptr, draft_ptr, nodes, node, child, vocab, alpha, a,
    mass, rho,
):  # fmt: skip
    """(mass, bound, scale): the child may be accepted with mass of bound; bound 0: its law cannot give it."""
    x, kind, phi = tl.load(tokens_ptr + child), tl.load(drawn_ptr + child), (1.0 - a) + mass
    zero = tl.full([], 0.0, tl.float64)
    offered, bound, scale = zero, zero, zero
    if kind == 0:
        offered, bound = residual(alpha, tl.load(state_ptr + child * 6 + WEIGHT), rho, zero), phi
    else:
        weight = tl.load(draft_ptr + x)
        if weight > 0:
            other = sibling(parents_ptr, nodes, node, node)
            while other < child:  # Z leaves out what was drawn without replacement before it
                y = tl.load(tokens_ptr + other)
                if (tl.load(drawn_ptr + other) == 2) & (tl.load(state_ptr + other * 6 + FAILED) > 0):
                    put(state_ptr + other * 6 + WEIGHT, tl.load(draft_ptr + y))
                    put(draft_ptr + y, zero)
                other = sibling(parents_ptr, nodes, node, other)
            scale = phi / sum_lanes(stored_sums(draft_ptr, vocab))
            other = sibling(parents_ptr, nodes, node, node)
            while other < child:
                y = tl.load(tokens_ptr + other)
                if (tl.load(drawn_ptr + other) == 2) & (tl.load(state_ptr + other * 6 + FAILED) > 0):
                    put(draft_ptr + y, tl.load(state_ptr + other * 6 + WEIGHT))
                other = sibling(parents_ptr, nodes, node, other)
            offered = residual(alpha, tl.load(target_ptr + x), rho, weight)
            bound = scale * weight
    return offered, bound, scale


@triton.jit
def fail(
    parents_ptr, drawn_ptr, state_ptr, target_ptr, draft_ptr, nodes, node, child, vocab, alpha, a, mass, rho,
    bound, scale, PLANTED_BUG: tl.constexpr,
):  # fmt: skip
    """mass and rho after the child was refused."""
    new_mass, new_rho = mass, rho
    if bound > 0:
        fixed = tl.load(drawn_ptr + child) == 0
        weight = tl.load(state_ptr + child * 6 + WEIGHT)
        if fixed:
            put(state_ptr + child * 6 + WEIGHT, weight * 0)
        elif PLANTED_BUG != "takes nothing":
            new_rho = rho + scale
        total = residual_sum(target_ptr, draft_ptr, vocab, alpha, new_rho)
        i = nodes - 1
        while i > node:
            if (tl.load(parents_ptr + i) == node) & (tl.load(drawn_ptr + i) == 0):
                total += residual(alpha, tl.load(state_ptr + i * 6 + WEIGHT), new_rho, weight * 0)
            i -= 1
        could = (total > 0) | (a < 1)  # else its probability was rounded
        new_mass, new_rho = tl.where(could, total, mass), tl.where(could, new_rho, rho)
        put(state_ptr + child * 6 + FAILED, (could | ~fixed).to(tl.float64))
        if ~could:
            put(state_ptr + child * 6 + WEIGHT, weight)
    return new_mass, new_rho


@triton.jit
def draw_extra(
    tokens_ptr, parents_ptr, drawn_ptr, state_ptr, target_ptr, draft_ptr, scratch_ptr, nodes, node, vocab,
    rho, u,
):  # fmt: skip
    """The token after the node, by what is left of it."""
    alpha = tl.load(state_ptr + node * 6 + ALPHA)
    child = sibling(parents_ptr, nodes, node, node)
    while child >= 0:
        if (tl.load(drawn_ptr + child) == 0) & (tl.load(state_ptr + child * 6 + FAILED) == 0):
            put(target_ptr + tl.load(tokens_ptr + child), tl.load(state_ptr + child * 6 + WEIGHT))
        child = sibling(parents_ptr, nodes, node, child)
    for start in range(0, vocab, _SUM_BLOCK):
        ids = start + tl.arange(0, _SUM_BLOCK)
        target = tl.load(target_ptr + ids, mask=ids < vocab, other=0.0)
        draft = tl.load(draft_ptr + ids, mask=ids < vocab, other=0.0)
        tl.debug_barrier()
        tl.store(target_ptr + ids, residual(alpha, target, rho, draft), mask=ids < vocab)
    tl.debug_barrier()
    return draw_stored(target_ptr, scratch_ptr, vocab, u)
