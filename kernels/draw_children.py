# SPDX-License-Identifier: Apache-2.0
"""draw_children in Triton: the children of frontier nodes, bit for bit pyspec/spec/draw_children.py.

One program is one row. A draw is a pass of weights and additions over the row, and one over the lane that it
falls into; i.i.d. draws share the first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyspec.spec import noise as noise_law
from pyspec.spec import pipeline as law

from .aot import AotCase
from .categorical import SCRATCH, draw_plain, lane_sums
from .dots import rows
from .noise import log, uniform
from .pipeline import OPTIONS, first_best, first_in_order, load_row, pick_config, sort_size, sum_lanes

_LOG2E = tl.constexpr(noise_law.LOG2E)
_GREEDY_BELOW = tl.constexpr(law.GREEDY_BELOW)
_INF = tl.constexpr(float("inf"))
_DRAFT = tl.constexpr(noise_law.DRAFT)


@triton.jit(do_not_specialize=["width"])
def draw_kernel(
    logits_ptr, count_ptr, temperature_ptr, seed_ptr, stream_ptr, step_ptr, node_ptr, token_ptr, log_q_ptr,
    scratch_ptr, vocab, width, logits_stride_t, RULE: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
    BLOCK: tl.constexpr, SCRATCH: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """The children of one row."""
    t = tl.program_id(0).to(tl.int64)
    vocab = (
        tl.full([], 1 if PLANTED_BUG == "one more" else 0, tl.int32) + vocab
    )  # a number also where it is 1
    row_ptr, scratch_ptr = logits_ptr + t * logits_stride_t, scratch_ptr + t * SCRATCH
    token_ptr += (0 if PLANTED_BUG == "one row" else t) * width
    place = tl.arange(0, WIDTH)
    tl.store(token_ptr + place, tl.full([WIDTH], -1, tl.int32), mask=place < width)
    count, temperature = tl.load(count_ptr + t), tl.load(temperature_ptr + t)
    seed, stream = tl.load(seed_ptr + t), tl.load(stream_ptr + t)
    step, node = tl.load(step_ptr + t), tl.load(node_ptr + t)
    best_value, first, infinite = first_best(row_ptr, vocab, BLOCK)
    best = best_value.to(tl.float64)
    greedy = temperature < _GREEDY_BELOW
    inv_t = tl.where(greedy, 0.0, 1.0 / tl.where(greedy, 1.0, temperature).to(tl.float64))
    log_sum = tl.full([], 0.0, tl.float64)
    if (best_value != -_INF) & (count > 0):
        lanes = lane_sums(row_ptr, vocab, best, first, infinite, inv_t, token_ptr, 0)
        log_sum = log(sum_lanes(lanes))
        fixed = tl.full([], 0, tl.int32)  # the last children, which are not drawn
        taken = tl.full([], 0, tl.int32)
        if RULE == "hybrid":
            fixed = count - 1
            if fixed > 0:
                taken = count
                num = tl.minimum(fixed, vocab)
                ids, z = first_in_order(row_ptr, token_ptr + 1, vocab, infinite, num, True, SIZE, BLOCK)
                e = (z.to(tl.float64) - best) * (_LOG2E * inv_t)
                heavy = tl.where(greedy, ids == first, (e >= -126.0) & (z != -_INF))
                rank = tl.arange(0, SIZE)
                tl.store(token_ptr + 1 + rank, tl.where(heavy & (rank < num), ids, -1), mask=rank < fixed)
                tl.debug_barrier()
                lanes = lane_sums(row_ptr, vocab, best, first, infinite, inv_t, token_ptr, taken)
        j = tl.full([], 0, tl.int32)
        while j < count - fixed:
            u = uniform(seed, stream, step, node, j * 0 if PLANTED_BUG == "one number" else j, _DRAFT)
            token = draw_plain(
                row_ptr, scratch_ptr, lanes, vocab, best, first, infinite, inv_t, token_ptr, taken, u,
                PLANTED_BUG,
            )  # fmt: skip
            tl.store(token_ptr + j, token)
            tl.debug_barrier()
            j = tl.where(token < 0, count, j + 1)
            if RULE == "without_replacement":
                taken = j * 0 if PLANTED_BUG == "again" else j
                if j < count:
                    lanes = lane_sums(row_ptr, vocab, best, first, infinite, inv_t, token_ptr, taken)
    tl.debug_barrier()
    token = tl.load(token_ptr + place, mask=place < width, other=-1)
    z = load_row(row_ptr, tl.maximum(token, 0), vocab, infinite, True)
    log_q = ((z.to(tl.float64) - best) * inv_t - log_sum).to(tl.float32)
    tl.store(log_q_ptr + t * width + place, tl.where(token >= 0, log_q, -_INF), mask=place < width)


def draw_children(
    logits: Tensor, count: Tensor, temperature: Tensor, seed: Tensor, stream: Tensor, step: Tensor,
    node: Tensor, *, width: int, rule: str = "without_replacement",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """token [T, width] i32 and log_q [T, width] f32."""
    return _launch(logits, (count, temperature, seed, stream, step, node), width, rule)


def _launch(
    logits: Tensor, laws: tuple[Tensor, ...], width: int, rule: str, bug: str = ""
) -> tuple[Tensor, Tensor]:
    t, vocab = logits.shape
    token, log_q = laws[0].new_empty(t, width), logits.new_empty(t, width)
    if t:
        c, logits = pick_config(vocab), rows(logits)
        scratch = logits.new_empty(t, SCRATCH, dtype=torch.float64)
        draw_kernel[(t,)](
            logits, *(law.contiguous() for law in laws), token, log_q, scratch, vocab, width,
            logits.stride(0), RULE=rule, WIDTH=triton.next_power_of_2(width), SIZE=sort_size(width),
            BLOCK=c.block, SCRATCH=SCRATCH, PLANTED_BUG=bug, num_warps=c.num_warps, **OPTIONS,
        )  # fmt: skip
    return token, log_q


def aot_cases() -> list[AotCase]:
    """Four children by every rule, over a vocabulary of 49152."""
    c, cases = pick_config(49152), []
    kinds = {
        **dict.fromkeys(("logits_ptr", "temperature_ptr", "log_q_ptr"), "*fp32"), "seed_ptr": "*i64",
        "scratch_ptr": "*fp64", **dict.fromkeys(("vocab", "width", "logits_stride_t"), "i32"),
    }  # fmt: skip
    for rule in ("iid", "without_replacement", "hybrid"):
        constants = {
            "RULE": rule, "WIDTH": 4, "SIZE": sort_size(4), "BLOCK": c.block, "SCRATCH": SCRATCH,
            "PLANTED_BUG": "",
        }  # fmt: skip
        names = draw_kernel.arg_names
        signature = {n: "constexpr" if n in constants else kinds.get(n, "*i32") for n in names}
        cases.append(
            AotCase(f"draw_children-{rule}", draw_kernel, signature, constants, c.num_warps, options=OPTIONS)
        )
    return cases
