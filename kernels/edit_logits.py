# SPDX-License-Identifier: Apache-2.0
"""edit_logits in Triton: penalties, biases and masks of every node's row, bit for bit pyspec/spec/edit_logits.py.

One program is a part of one row: it copies it, masked, and then changes the few of its tokens that are in
the history, on the node's path, biased, each with a barrier between.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pyspec.spec import pipeline as law

from .aot import AotCase
from .dots import rows
from .pipeline import request_of

_TINY = tl.constexpr(law.TINY)
_INF = tl.constexpr(float("inf"))
PART = 4096  # tokens of a program
WARPS = 4
OPTIONS = {"enable_fp_fusion": False}  # fused multiply-adds have other bits


@triton.jit
def widened(x):
    """f32 as f64; denormals count as 0."""
    return tl.where(tl.abs(x) < _TINY, 0.0, x).to(tl.float64)


@triton.jit
def rounded(x):
    """f64 as f32; denormals count as 0."""
    return tl.where(tl.abs(x) < _TINY, 0.0, x).to(tl.float32)


@triton.jit
def divided(y, d, inverse):
    """The correctly rounded y / d by an inverse of d: Markstein's two steps.

    Neither overflows for y and d that were floats, and d's significand is not all ones, as his theorem asks.
    A division is a call, around which ptxas spills.
    """
    d, inverse = tl.broadcast_to(d, y.shape), tl.broadcast_to(inverse, y.shape)
    near = y * inverse
    nearer = tl.fma(tl.fma(-near, d, y), inverse, near)
    return tl.where(tl.abs(y) < _INF, tl.fma(tl.fma(-nearer, d, y), inverse, nearer), y)


@triton.jit
def penalised(logit, n, repetition, inverse, presence, frequency):
    """What the logit of a token that is n times in the output becomes; n > 0 where it is there at all."""
    y = widened(logit)
    if repetition != 1:
        y = tl.where(y > 0, divided(y, repetition, inverse), y * repetition)
    if frequency != 0:
        y = tl.where(n > 0, y - frequency * n.to(tl.float64), y)
    if presence != 0:
        y = tl.where(n > 0, y - presence, y)
    return rounded(y)


@triton.jit
def allowed(mask_ptr, row, words, x, mask):
    """Whether the mask of a node allows the tokens x; everything is where row is -1."""
    word = tl.load(mask_ptr + row.to(tl.int64) * words + x // 32, mask=mask & (row >= 0), other=-1)
    return (word >> (x % 32)) & 1 == 1


@triton.jit(do_not_specialize=["requests"])
def edit_kernel(
    logits_ptr, tokens_ptr, parents_ptr, cu_t_ptr, repetition_ptr, presence_ptr, frequency_ptr, history_ptr,
    count_ptr, cu_history_ptr, bias_token_ptr, bias_ptr, cu_bias_ptr, mask_ptr, mask_row_ptr, out_ptr, vocab,
    requests, logits_stride_t, PART: tl.constexpr, BLOCK: tl.constexpr, BLOCK_B: tl.constexpr,
    PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """Tokens [first, end) of the row of one node."""
    t = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * PART
    end = tl.minimum(first + PART, vocab)
    logits_ptr += t * logits_stride_t
    out_ptr += (0 if PLANTED_BUG == "one row" else t) * vocab
    row = tl.load(mask_row_ptr + t)
    words = (vocab + 31) // 32
    for start in range(first, end, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        inside = ids < (vocab + BLOCK if PLANTED_BUG == "no mask" else end)
        z = tl.load(logits_ptr + ids, mask=inside, other=0.0)
        if mask_ptr is not None:
            z = tl.where(allowed(mask_ptr, row, words, ids, inside), z, -_INF)
        tl.store(out_ptr + ids, z, mask=inside)
    b = request_of(cu_t_ptr, requests, t, BLOCK_B)
    if b >= requests:
        return
    tl.debug_barrier()  # other threads' copies are there
    begin = tl.load(cu_t_ptr + b)
    node = t.to(tl.int32) - begin
    first_entry, last_entry = tl.load(cu_history_ptr + b), tl.load(cu_history_ptr + b + 1)
    repetition = tl.load(repetition_ptr + b).to(tl.float64)
    inverse = 1.0 / repetition
    presence, frequency = widened(tl.load(presence_ptr + b)), widened(tl.load(frequency_ptr + b))
    if (repetition != 1) | (presence != 0) | (frequency != 0):
        for start in range(first_entry, last_entry, BLOCK):
            entry = start + tl.arange(0, BLOCK)
            x = tl.load(history_ptr + entry, mask=entry < last_entry, other=-1)
            n = tl.load(count_ptr + entry, mask=entry < last_entry, other=0)
            here = (x >= first) & (x < end)
            z = tl.load(logits_ptr + x, mask=here, other=0.0)
            if mask_ptr is not None:
                here = here & allowed(mask_ptr, row, words, x, here)
            tl.store(out_ptr + x, penalised(z, n, repetition, inverse, presence, frequency), mask=here)
        tl.debug_barrier()  # what the history gave is written over
        i = node
        while i > 0:
            x = tl.load(tokens_ptr + begin + i)
            if (x >= first) & (x < end):
                n = tl.full([], 0, tl.int32)
                j = node
                while j > 0:
                    n += (tl.load(tokens_ptr + begin + j) == x).to(tl.int32)
                    j = tl.load(parents_ptr + begin + j)
                if PLANTED_BUG != "path alone":
                    for start in range(first_entry, last_entry, BLOCK):
                        entry = start + tl.arange(0, BLOCK)
                        known = tl.load(history_ptr + entry, mask=entry < last_entry, other=-1) == x
                        count = tl.load(count_ptr + entry, mask=known & (entry < last_entry), other=0)
                        n += tl.sum(count, axis=0)
                here = x >= 0
                if mask_ptr is not None:
                    here = allowed(mask_ptr, row, words, x, here)
                z = penalised(tl.load(logits_ptr + x), n, repetition, inverse, presence, frequency)
                tl.store(out_ptr + x, z, mask=here)
            i = tl.load(parents_ptr + begin + i)
        tl.debug_barrier()  # biases read it
    last_bias = tl.load(cu_bias_ptr + b + 1)
    for start in range(tl.load(cu_bias_ptr + b), last_bias, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        x = tl.load(bias_token_ptr + entry, mask=entry < last_bias, other=-1)
        bias = tl.load(bias_ptr + entry, mask=entry < last_bias, other=0.0)
        here = (x >= first) & (x < end)
        y = tl.load(out_ptr + x, mask=here, other=0.0)
        tl.store(out_ptr + x, rounded(widened(y) + widened(bias)), mask=here)


def edit_logits(*args: Tensor | None) -> Tensor:
    """The edited rows [T, V] f32; the arguments are those of the specification."""
    return _launch(*args)


def _launch(*args: Any, bug: str = "") -> Tensor:
    logits, _, _, cu_t, *_ = args
    (t, vocab), b = logits.shape, cu_t.size(0) - 1
    out = logits.new_empty(t, vocab)
    if out.numel() == 0:
        return out
    logits, others = rows(logits), [None if x is None else x.contiguous() for x in args[1:]]
    edit_kernel[(t, triton.cdiv(vocab, PART))](
        logits, *others, out, vocab, b, logits.stride(0), PART=PART, BLOCK=128 * WARPS,
        BLOCK_B=triton.next_power_of_2(max(b, 1)), PLANTED_BUG=bug, num_warps=WARPS, **OPTIONS,
    )  # fmt: skip
    return out


def aot_cases() -> list[AotCase]:
    """Rows of eight requests, with masks and without."""
    floats = ("logits", "repetition", "presence", "frequency", "bias", "out")
    pointers = {f"{name}_ptr": "*fp32" for name in floats}
    sizes = {"vocab": "i32", "requests": "i32", "logits_stride_t": "i32"}
    cases = []
    for name, masks in (("edit_logits", {"mask_ptr": None}), ("edit_logits-mask", {})):
        constants = {"PART": PART, "BLOCK": 128 * WARPS, "BLOCK_B": 8, "PLANTED_BUG": "", **masks}
        kinds = {n: {**pointers, **sizes}.get(n, "*i32") for n in edit_kernel.arg_names}
        signature = {n: "constexpr" if n in constants else kind for n, kind in kinds.items()}
        cases.append(AotCase(name, edit_kernel, signature, constants, WARPS, options=OPTIONS))
    return cases
