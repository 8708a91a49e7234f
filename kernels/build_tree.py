# SPDX-License-Identifier: Apache-2.0
"""build_tree in Triton: one level of best-first growth, bit for bit as pyspec/spec/build_tree.py.

Three launches: the score of every token below every frontier node; the `width` best of each node; the best
of those per request.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pyspec.spec import noise as noise_law
from pyspec.spec import pipeline as law

from .aot import AotCase
from .dots import rows
from .noise import exp2, exponential, exponential_of, log, words_of
from .pipeline import (
    OPTIONS,
    first_best,
    first_in_order,
    fold_lanes,
    load_row,
    pick_config,
    request_of,
    sort_size,
    sum_lanes,
)

_LOG2E = tl.constexpr(noise_law.LOG2E)
_GREEDY_BELOW = tl.constexpr(law.GREEDY_BELOW)
_INF = tl.constexpr(float("inf"))
_SUM_BLOCK = tl.constexpr(8 * law.LANES)


@triton.jit
def noise_of(start, vocab, seed, stream, position, ids_ptr, TOKENS: tl.constexpr):
    """E = exp(-g) of columns start .. start + TOKENS - 1, whose tokens are their numbers where there are no ids."""
    if ids_ptr is None:
        e = exponential(start, seed, stream, position, TOKENS)
    else:
        columns = start + tl.arange(0, TOKENS)
        tokens = tl.load(ids_ptr + columns, mask=columns < vocab, other=0)
        e = exponential_of(words_of(tokens, seed, stream, position))
    return e


@triton.jit(do_not_specialize=["requests"])
def scores_kernel(
    logits_ptr, node_score_ptr, cu_t_ptr, position_ptr, temperature_ptr, seed_ptr, stream_ptr, ids_ptr, scores_ptr,
    vocab, requests, logits_stride_t, SHARED_NOISE: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_B: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """scores [T, V] f32 of the columns of one node; -inf where there is no child."""
    t = tl.program_id(0).to(tl.int64)
    vocab = tl.full([], 0, tl.int32) + vocab  # a number also where Triton makes 1 a constant
    b = request_of(cu_t_ptr, requests, t, BLOCK_B)
    row_ptr, scores_ptr = logits_ptr + t * logits_stride_t, scores_ptr + t * vocab
    position, seed, stream = tl.load(position_ptr + b), tl.load(seed_ptr + b), tl.load(stream_ptr + b)
    position += 1 if PLANTED_BUG == "next position" else 0
    temperature = tl.load(temperature_ptr + b)
    noisy = (temperature >= _GREEDY_BELOW) & SHARED_NOISE
    inv_t = tl.where(
        temperature >= _GREEDY_BELOW, 1.0 / tl.maximum(temperature, _GREEDY_BELOW).to(tl.float64), 1.0
    )
    score = tl.load(node_score_ptr + t)
    best, _, infinite = first_best(row_ptr, vocab, BLOCK)
    alive = (best != -_INF) & (tl.abs(score) < _INF)
    best = tl.where(alive, best, 0.0).to(tl.float64)
    total = tl.zeros([32], tl.float64)
    for start in range(0, vocab, _SUM_BLOCK):
        ids = start + tl.arange(0, _SUM_BLOCK)
        w = exp2((load_row(row_ptr, ids, vocab, infinite, True).to(tl.float64) - best) * (_LOG2E * inv_t))
        if noisy:
            w = w / noise_of(start, vocab, seed, stream, position, ids_ptr, _SUM_BLOCK)
        total = fold_lanes(total, tl.where(ids < vocab, w, 0.0))
    log_sum = log(sum_lanes(total))
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        d = (load_row(row_ptr, ids, vocab, infinite, True).to(tl.float64) - best) * inv_t
        if noisy:
            d = d - log(noise_of(start, vocab, seed, stream, position, ids_ptr, BLOCK))
        child = (score.to(tl.float64) + (d - log_sum)).to(tl.float32)
        mask = ids < (vocab + 1 if PLANTED_BUG == "one more" else vocab)
        tl.store(scores_ptr + ids, tl.where(alive, child, -_INF), mask=mask)


@triton.jit(do_not_specialize=["width"])
def node_best_kernel(
    scores_ptr, best_ptr, column_ptr, vocab, width, SIZE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The `width` best children of one node in order: best, column [T, width]; -inf where there are fewer."""
    t = tl.program_id(0).to(tl.int64)
    vocab = tl.full([], 0, tl.int32) + vocab
    column_ptr += t * width
    num = tl.minimum(vocab, width)
    columns, values = first_in_order(
        scores_ptr + t * vocab, column_ptr, vocab, False, num, False, SIZE, BLOCK
    )
    place = tl.arange(0, SIZE)
    tl.store(column_ptr + place, columns, mask=place < num)
    tl.store(best_ptr + t * width + place, tl.where(place < num, values, -_INF), mask=place < width)


@triton.jit(do_not_specialize=["width"])
def request_best_kernel(
    best_ptr, node_column_ptr, cu_t_ptr, ids_ptr, token_ptr, parent_ptr, score_ptr, width,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """The `width` best of a request's nodes' children.

    Their flat index orders ties: by node, then by column, which is the order of tokens.
    """
    b = tl.program_id(0).to(tl.int64)
    begin = tl.load(cu_t_ptr + b).to(tl.int64)
    candidates = (tl.load(cu_t_ptr + b + 1) - begin).to(tl.int32) * width
    place = tl.arange(0, SIZE)
    mask = place < width
    out = (0 if PLANTED_BUG == "one row" else b) * width + place
    if candidates == 0:
        tl.store(token_ptr + out, tl.full([SIZE], -1, tl.int32), mask=mask)
        tl.store(parent_ptr + out, tl.full([SIZE], -1, tl.int32), mask=mask)
        tl.store(score_ptr + out, tl.full([SIZE], -_INF, tl.float32), mask=mask)
    else:
        index, values = first_in_order(
            best_ptr + begin * width, token_ptr + b * width, candidates, False, width, False, SIZE, BLOCK
        )
        child = mask & (values > -_INF)
        token = tl.load(node_column_ptr + begin * width + index, mask=child, other=-1)
        if ids_ptr is not None and PLANTED_BUG != "columns":
            token = tl.load(ids_ptr + token, mask=child, other=-1)
        tl.store(token_ptr + out, token, mask=mask)
        tl.store(parent_ptr + out, tl.where(child, index // width, -1), mask=mask)
        tl.store(score_ptr + out, tl.where(child, values, -_INF), mask=mask)


def build_tree(
    logits: Tensor, node_score: Tensor, cu_t: Tensor, position: Tensor, temperature: Tensor, seed: Tensor,
    stream: Tensor, ids: Tensor | None = None,
    *, width: int, rule: str = "shared_noise",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """token, parent and score [B, width] of the children that each request keeps."""
    return _launch(logits, node_score, cu_t, (position, temperature, seed, stream), ids, width, rule)


def _launch(
    logits: Tensor,
    node_score: Tensor,
    cu_t: Tensor,
    laws: tuple[Tensor, ...],
    ids: Tensor | None,
    width: int,
    rule: str,
    bug: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    (t, vocab), b = logits.shape, cu_t.size(0) - 1
    token, parent, score = cu_t.new_empty(b, width), cu_t.new_empty(b, width), logits.new_empty(b, width)
    scores, best, node_column = (
        logits.new_empty(t, vocab),
        logits.new_empty(t, width),
        cu_t.new_empty(t, width),
    )
    c, cu_t, size = pick_config(vocab), cu_t.contiguous(), sort_size(width)
    ids = None if ids is None else ids.contiguous()
    if t:
        logits = rows(logits)
        scores_kernel[(t,)](
            logits, node_score.contiguous(), cu_t, *(law.contiguous() for law in laws), ids, scores, vocab,
            b, logits.stride(0), SHARED_NOISE=rule == "shared_noise", BLOCK=c.block,
            BLOCK_B=triton.next_power_of_2(b), PLANTED_BUG=bug, num_warps=c.num_warps, **OPTIONS,
        )  # fmt: skip
        node_best_kernel[(t,)](
            scores, best, node_column, vocab, width, SIZE=size, BLOCK=c.block, num_warps=c.num_warps
        )
    if b:
        request_best_kernel[(b,)](
            best,
            node_column,
            cu_t,
            ids,
            token,
            parent,
            score,
            width,
            SIZE=size,
            BLOCK=512,
            PLANTED_BUG=bug,
            num_warps=2,
        )
    return token, parent, score


def aot_cases() -> list[AotCase]:
    """Both rules over a vocabulary of 49152, and with the noise over 49152 columns with tokens; 16 children kept."""
    c, size = pick_config(49152), sort_size(16)
    floats = ("logits_ptr", "node_score_ptr", "temperature_ptr", "scores_ptr", "best_ptr", "score_ptr")
    kinds = {
        **dict.fromkeys(floats, "*fp32"), "seed_ptr": "*i64",
        **dict.fromkeys(("vocab", "width", "requests", "logits_stride_t"), "i32"),
    }  # fmt: skip

    def case(name: str, kernel: Any, num_warps: int, **constants: Any) -> AotCase:
        signature = {n: "constexpr" if n in constants else kinds.get(n, "*i32") for n in kernel.arg_names}
        options = OPTIONS if kernel is scores_kernel else {"enable_fp_fusion": False}
        return AotCase(f"build_tree-{name}", kernel, signature, constants, num_warps, options=options)

    scores = {"BLOCK": c.block, "BLOCK_B": 8, "PLANTED_BUG": ""}
    plain = {"ids_ptr": None}
    request = {"SIZE": size, "BLOCK": 512, "PLANTED_BUG": ""}
    return [
        case("scores-noise0", scores_kernel, c.num_warps, SHARED_NOISE=False, **plain, **scores),
        case("scores-noise1", scores_kernel, c.num_warps, SHARED_NOISE=True, **plain, **scores),
        case("scores-ids", scores_kernel, c.num_warps, SHARED_NOISE=True, **scores),
        case("node", node_best_kernel, c.num_warps, SIZE=size, BLOCK=c.block),
        case("request", request_best_kernel, 2, **request, **plain),
        case("request-ids", request_best_kernel, 2, **request),
    ]
