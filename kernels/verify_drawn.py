# SPDX-License-Identifier: Apache-2.0
"""verify_drawn in Triton: rejection along token trees, bit for bit pyspec/spec/verify_drawn.py.

Three launches: the weights of both laws of every node, each in memory of its own; the walk, one program a
request, whose sums go through that memory; the logprobs of the path. Rows that the walk does not need are
read too: see verify_tree.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyspec.spec import noise as noise_law
from pyspec.spec import pipeline as law
from pyspec.spec.categorical import LEAST_EXPONENT

from .aot import AotCase
from .categorical import SCRATCH, draw_stored, stored_sums
from .dots import rows
from .noise import exp2, uniform
from .pick import filters_of, report
from .pipeline import (
    OPTIONS,
    first_best,
    kept,
    load_row,
    order_key,
    pick_config,
    request_of,
    sort_size,
    sum_lanes,
)
from .residual import HANDED, MASS, RHO, STATES, begin, draw_extra, fail, offer, put, sibling

_LOG2E = tl.constexpr(noise_law.LOG2E)
_LEAST_EXPONENT = tl.constexpr(LEAST_EXPONENT)
_GREEDY_BELOW = tl.constexpr(law.GREEDY_BELOW)
_LEAST_HANDED = tl.constexpr(law.TINY)
_INF = tl.constexpr(float("inf"))
_ACCEPT, _EXTRA = tl.constexpr(noise_law.ACCEPT), tl.constexpr(noise_law.EXTRA)
MAX_BYTES = 1 << 30  # of the weights of all nodes


@triton.jit
def weigh(
    row_ptr, to_ptr, vocab, temperature, top_k, top_p, min_p, typical_p, BLOCK: tl.constexpr
):  # fmt: skip
    """The weights of a row's law [vocab] f64; zeros if it has none."""
    best_value, first, infinite = first_best(row_ptr, vocab, BLOCK)
    greedy, alive = temperature < _GREEDY_BELOW, best_value != -_INF
    best = tl.where(alive, best_value, 0.0).to(tl.float64)
    cut_key, cut_id, inv_t, floor, middle, radius = filters_of(
        row_ptr, vocab, best, infinite, tl.where(greedy, 1.0, temperature), top_k, top_p, min_p, typical_p,
        BLOCK, "",
    )  # fmt: skip
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        z = load_row(row_ptr, ids, vocab, infinite, True)
        centred = z.to(tl.float64) - best
        e = centred * (_LOG2E * inv_t)
        keep = kept(order_key(z), ids, cut_key, cut_id) & (centred * inv_t >= floor)
        keep = keep & (tl.abs(e - middle) <= radius) & (e >= _LEAST_EXPONENT) & (z != -_INF)
        w = tl.where(greedy, (ids == first).to(tl.float64), tl.where(keep, exp2(e), 0.0))
        tl.store(to_ptr + ids, tl.where(alive, w, 0.0), mask=ids < vocab)


@triton.jit(do_not_specialize=["requests"])
def weigh_kernel(
    rows_ptr, draft_ptr, cu_t_ptr, draft_row_ptr, draft_temperature_ptr, temperature_ptr, top_k_ptr,
    top_p_ptr, min_p_ptr, typical_p_ptr, weights_ptr, vocab, requests, rows_stride_t, draft_stride_r,
    DRAFT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_B: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """The weights of one node: of the target's law, or of the draft's (zeros without a row)."""
    t = tl.program_id(0).to(tl.int64)
    count = vocab
    vocab = (
        tl.full([], 1 if PLANTED_BUG == "one more" else 0, tl.int32) + vocab
    )  # a number also where it is 1
    to_ptr = weights_ptr + (0 if PLANTED_BUG == "one row" else t) * count
    b = request_of(cu_t_ptr, requests, t, BLOCK_B)
    if b < requests:
        if DRAFT:
            row = tl.load(draft_row_ptr + t)
            if row >= 0:
                off, one = tl.full([], 0, tl.int32), tl.full([], 1.0, tl.float32)
                weigh(
                    draft_ptr + row.to(tl.int64) * draft_stride_r, to_ptr, vocab,
                    tl.load(draft_temperature_ptr + b), off, one, one * 0, one, BLOCK,
                )  # fmt: skip
            else:
                for start in range(0, vocab, BLOCK):
                    ids = start + tl.arange(0, BLOCK)
                    tl.store(to_ptr + ids, tl.zeros([BLOCK], tl.float64), mask=ids < vocab)
        else:
            weigh(
                rows_ptr + t * rows_stride_t, to_ptr, vocab, tl.load(temperature_ptr + b),
                tl.load(top_k_ptr + b), tl.load(top_p_ptr + b), tl.load(min_p_ptr + b),
                tl.load(typical_p_ptr + b), BLOCK,
            )  # fmt: skip


@triton.jit(do_not_specialize=["max_path"])
def walk_kernel(
    tokens_ptr, parents_ptr, cu_t_ptr, drawn_ptr, step_ptr, seed_ptr, stream_ptr, target_ptr, draft_ptr,
    state_ptr, scratch_ptr, path_ptr, path_len_ptr, extra_ptr, vocab, max_path, WALK: tl.constexpr,
    SCRATCH: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """One request: its path, and the token after it (-1: none)."""
    b = tl.program_id(0).to(tl.int64)
    vocab = tl.full([], 0, tl.int32) + vocab
    t0 = tl.load(cu_t_ptr + b).to(tl.int64)
    nodes = (tl.load(cu_t_ptr + b + 1) - t0).to(tl.int32)
    tokens_ptr, parents_ptr, drawn_ptr = tokens_ptr + t0, parents_ptr + t0, drawn_ptr + t0
    target_ptr, draft_ptr, state_ptr = target_ptr + t0 * vocab, draft_ptr + t0 * vocab, state_ptr + t0 * 6
    scratch_ptr += b * SCRATCH
    seed, stream, step = tl.load(seed_ptr + b), tl.load(stream_ptr + b), tl.load(step_ptr + b)
    zero = tl.full([], 0.0, tl.float64)
    node, end, extra = tl.full([], 0, tl.int32), tl.full([], -1, tl.int32), tl.full([], -1, tl.int32)
    entered = tl.full([], 1, tl.int32)
    searching = (nodes > 0).to(tl.int32)
    if WALK == "traversal" and searching > 0:
        put(state_ptr + HANDED, zero + 1.0)
    while searching > 0:
        own, own_draft = target_ptr + node.to(tl.int64) * vocab, draft_ptr + node.to(tl.int64) * vocab
        first = sibling(parents_ptr, nodes, node, node)
        if WALK == "target":
            u = uniform(seed, stream, step, node, node * 0, _EXTRA)
            extra = draw_stored(own, scratch_ptr, vocab, u)
            child = first
            while (child >= 0) & (tl.load(tokens_ptr + child, mask=child >= 0, other=-2) != extra):
                child = sibling(parents_ptr, nodes, node, child)
            end, searching = node, (child >= 0).to(tl.int32)
            node = tl.maximum(child, 0)
        else:
            a = zero + 1.0
            if WALK == "traversal":
                a = tl.load(state_ptr + node * 6 + HANDED)
            alive = sum_lanes(stored_sums(own, vocab)) > 0
            looks = alive
            if WALK == "traversal":
                looks = alive & (entered > 0) & (first >= 0) & (a > 0)
            mass, rho, chosen = a, zero, tl.full([], -1, tl.int32)
            if looks:
                alpha = begin(
                    tokens_ptr, parents_ptr, drawn_ptr, state_ptr, own, own_draft, nodes, node, vocab, a
                )
                child = first
                while (child >= 0) & (chosen < 0):
                    offered, bound, scale = offer(
                        tokens_ptr, parents_ptr, drawn_ptr, state_ptr, own, own_draft, nodes, node, child,
                        vocab, alpha, a, mass, rho,
                    )  # fmt: skip
                    if WALK == "traversal":
                        share = tl.where(
                            bound > 0, tl.minimum(offered / tl.where(bound > 0, bound, 1.0), 1.0), 0.0
                        )
                        put(state_ptr + child * 6 + HANDED, tl.where(share >= _LEAST_HANDED, share, 0.0))
                    else:
                        u = uniform(seed, stream, step, child, child * 0, _ACCEPT)
                        if u * bound < offered:
                            chosen = child
                    if chosen < 0:
                        mass, rho = fail(
                            parents_ptr, drawn_ptr, state_ptr, own, own_draft, nodes, node, child, vocab, alpha,
                            a, mass, rho, bound, scale, PLANTED_BUG,
                        )  # fmt: skip
                    child = sibling(parents_ptr, nodes, node, child)
            if WALK == "traversal":
                if entered > 0:
                    put(state_ptr + node * 6 + MASS, mass)
                    put(state_ptr + node * 6 + RHO, rho)
                if looks:
                    node = first
                else:
                    mass, rho = tl.load(state_ptr + node * 6 + MASS), tl.load(state_ptr + node * 6 + RHO)
                    u = uniform(
                        seed,
                        stream,
                        step,
                        node * 0 if PLANTED_BUG == "one number" else node,
                        node * 0,
                        _ACCEPT,
                    )
                    if (node == 0) | (u * ((1.0 - a) + mass) < mass):
                        end, searching = node, searching * 0
                    else:
                        parent = tl.load(parents_ptr + node)
                        following = sibling(parents_ptr, nodes, parent, node)
                        entered = (following >= 0).to(tl.int32)
                        node = tl.where(following >= 0, following, parent)
            else:
                end, searching = node, (chosen >= 0).to(tl.int32)
                if (chosen < 0) & alive:
                    put(state_ptr + node * 6 + RHO, rho)
                node = tl.maximum(chosen, 0)
    if WALK != "target" and end >= 0:
        own, own_draft = target_ptr + end.to(tl.int64) * vocab, draft_ptr + end.to(tl.int64) * vocab
        has_law = sum_lanes(stored_sums(own, vocab)) > 0
        if WALK == "traversal":
            child = sibling(parents_ptr, nodes, end, end)
            if (child < 0) & has_law:  # no child was looked at
                begin(
                    tokens_ptr, parents_ptr, drawn_ptr, state_ptr, own, own_draft, nodes, end, vocab,
                    tl.load(state_ptr + end * 6 + HANDED),
                )  # fmt: skip
            has_law = has_law | (child >= 0)
        if has_law:
            u = uniform(seed, stream, step, end, end * 0, _EXTRA)
            extra = draw_extra(
                tokens_ptr, parents_ptr, drawn_ptr, state_ptr, own, own_draft, scratch_ptr, nodes, end, vocab,
                tl.load(state_ptr + end * 6 + RHO), u,
            )  # fmt: skip
    depth = tl.full([], 0, tl.int32)
    node = end
    while node >= 0:
        depth += 1
        node = tl.load(parents_ptr + node)
    tl.store(path_len_ptr + b, tl.minimum(depth, max_path))
    tl.store(extra_ptr + b, extra)
    node = end
    while node >= 0:
        depth -= 1
        tl.store(path_ptr + b * max_path + depth, node, mask=depth < max_path)
        node = tl.load(parents_ptr + node)


@triton.jit(do_not_specialize=["max_path", "num"])
def report_kernel(
    logits_ptr, tokens_ptr, cu_t_ptr, path_ptr, path_len_ptr, extra_ptr, emitted_ptr, logprob_ptr,
    top_tokens_ptr, top_logprobs_ptr, vocab, max_path, num, logits_stride_t, LOGPROBS: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One place of a path: what is emitted there, its logprobs; what is beyond the path is filled."""
    b, depth = tl.program_id(0).to(tl.int64), tl.program_id(1)
    vocab = tl.full([], 0, tl.int32) + vocab
    length, at = tl.load(path_len_ptr + b), b * max_path + depth
    to_top, to_logprobs = top_tokens_ptr + at * num, top_logprobs_ptr + at * num
    if depth < length:
        t0 = tl.load(cu_t_ptr + b).to(tl.int64)
        node = tl.load(path_ptr + at)
        is_last = depth + 1 == length
        following = tl.load(path_ptr + at + 1, mask=~is_last, other=0)
        token = tl.where(is_last, tl.load(extra_ptr + b), tl.load(tokens_ptr + t0 + following))
        row_ptr = logits_ptr + (t0 + node) * logits_stride_t
        best, _, infinite = first_best(row_ptr, vocab, BLOCK)
        report(
            row_ptr, vocab, best, infinite, token >= 0, tl.maximum(token, 0), emitted_ptr + at,
            logprob_ptr + at, to_top, to_logprobs, num, LOGPROBS, SIZE, BLOCK,
        )  # fmt: skip
    else:
        tl.store(path_ptr + at, -1)
        tl.store(emitted_ptr + at, -1)
        tl.store(logprob_ptr + at, 0.0)
        if SIZE > 0:
            place = tl.arange(0, SIZE)
            tl.store(to_top + place, tl.full([SIZE], -1, tl.int32), mask=place < num)
            tl.store(to_logprobs + place, tl.zeros([SIZE], tl.float32), mask=place < num)


def limit(sizes: dict[str, int], *args: Tensor | None, **kwargs: object) -> str | None:
    """Why these kernels cannot run a call, or None."""
    bytes_ = 16 * sizes["T"] * sizes["V"]
    return (
        None if bytes_ <= MAX_BYTES else f"16 T V must be at most 2^30 (weights of all nodes), got {bytes_}"
    )


def verify_drawn(
    logits: Tensor, tokens: Tensor, parents: Tensor, cu_t: Tensor, drawn: Tensor, draft_logits: Tensor,
    draft_row: Tensor, draft_temperature: Tensor, step: Tensor, temperature: Tensor, top_k: Tensor,
    top_p: Tensor, min_p: Tensor, typical_p: Tensor, seed: Tensor, stream: Tensor,
    edited: Tensor | None = None, *, walk: str = "traversal", max_path: int, num_logprobs: int = 0,
    with_logprobs: bool = True,
) -> tuple[Tensor, ...]:  # fmt: skip
    """path, path_len, emitted, logprobs, top_tokens, top_logprobs of every request."""
    trees = tokens, parents, cu_t, drawn, draft_row
    laws = draft_temperature, temperature, top_k, top_p, min_p, typical_p, step, seed, stream
    return _launch(
        logits, logits if edited is None else edited, draft_logits, trees, laws, walk=walk,
        max_path=max_path, num=num_logprobs, with_logprobs=with_logprobs,
    )  # fmt: skip


def _launch(
    logits: Tensor, picked: Tensor, draft: Tensor, trees: tuple[Tensor, ...], laws: tuple[Tensor, ...], *,
    walk: str, max_path: int, num: int, with_logprobs: bool, bug: str = "",
) -> tuple[Tensor, ...]:  # fmt: skip
    (t, vocab), b = logits.shape, laws[0].size(0)
    tokens, parents, cu_t, drawn, draft_row = (x.contiguous() for x in trees)
    draft_temperature, *target_law, step, seed, stream = (x.contiguous() for x in laws)
    out = (
        tokens.new_empty(b, max_path), tokens.new_empty(b), tokens.new_empty(b, max_path),
        logits.new_empty(b, max_path), tokens.new_empty(b, max_path, num), logits.new_empty(b, max_path, num),
    )  # fmt: skip
    if b == 0:
        return out
    wide = lambda *shape: logits.new_empty(shape, dtype=torch.float64)
    weights, scratch = (wide(t, vocab), wide(t, vocab)), wide(b, SCRATCH)
    state = logits.new_zeros(t, STATES, dtype=torch.float64)
    c, logits, picked, draft = pick_config(vocab), rows(logits), rows(picked), rows(draft)
    for is_draft in (False, True) if walk != "target" else (False,):
        if t:
            weigh_kernel[(t,)](
                picked, draft, cu_t, draft_row, draft_temperature, *target_law, weights[is_draft], vocab, b,
                picked.stride(0), draft.stride(0), DRAFT=is_draft, BLOCK=c.block,
                BLOCK_B=triton.next_power_of_2(b), PLANTED_BUG=bug, num_warps=c.num_warps, **OPTIONS,
            )  # fmt: skip
    extra = tokens.new_empty(b)
    walk_kernel[(b,)](
        tokens, parents, cu_t, drawn, step, seed, stream, *weights, state, scratch, out[0], out[1], extra, vocab,
        max_path, WALK=walk, SCRATCH=SCRATCH, PLANTED_BUG=bug, num_warps=4, **OPTIONS,
    )  # fmt: skip
    if max_path:
        report_kernel[(b, max_path)](
            logits, tokens, cu_t, out[0], out[1], extra, *out[2:], vocab, max_path, num, logits.stride(0),
            LOGPROBS=with_logprobs, SIZE=sort_size(num), BLOCK=c.block, num_warps=c.num_warps, **OPTIONS,
        )  # fmt: skip
    return out


def aot_cases() -> list[AotCase]:
    """Both kinds of weights, every walk, and logprobs of 8 tokens over a vocabulary of 49152."""
    c = pick_config(49152)
    floats = ("rows", "draft", "draft_temperature", "temperature", "top_p", "min_p", "logits", "logprob")
    kinds = {
        **{f"{name}_ptr": "*fp32" for name in (*floats, "typical_p", "top_logprobs")},
        **dict.fromkeys(("weights_ptr", "state_ptr", "scratch_ptr", "target_ptr"), "*fp64"),
        "seed_ptr": "*i64",
    }  # fmt: skip

    def case(name: str, fn: Any, num_warps: int, constants: dict[str, Any], more: dict[str, str]) -> AotCase:
        types = {**kinds, **more}
        signature = {
            n: "constexpr" if n in constants else types.get(n, "*i32" if n.endswith("_ptr") else "i32")
            for n in fn.arg_names
        }
        return AotCase(f"verify_drawn-{name}", fn, signature, constants, num_warps, options=OPTIONS)

    cases = []
    for name, is_draft in (("target", False), ("draft", True)):
        constants = {"DRAFT": is_draft, "BLOCK": c.block, "BLOCK_B": 8, "PLANTED_BUG": ""}
        cases.append(case(f"weigh-{name}", weigh_kernel, c.num_warps, constants, {}))
    for walk in ("top_down", "traversal", "target"):
        constants = {"WALK": walk, "SCRATCH": SCRATCH, "PLANTED_BUG": ""}
        cases.append(case(walk, walk_kernel, 4, constants, {"draft_ptr": "*fp64"}))
    constants = {"LOGPROBS": True, "SIZE": sort_size(8), "BLOCK": c.block}
    cases.append(case("report", report_kernel, c.num_warps, constants, {}))
    return cases
