# SPDX-License-Identifier: Apache-2.0
"""tree_attention in Triton: ragged trees, chains and single tokens over a paged KV cache.

Specification: pyspec/spec/tree_attention.py. One program has a tile of rows of one request and KV head (row
r is node r // R with query head r % R) and some spans of 512 slots. attention_config.py says how a call is cut,
attention_tile.py what a program does with a tile of slots.

Order of a row's sums: slots are cut into spans at absolute multiples of 512 and those into tiles; a span is
an online softmax over its tiles in ascending order, from nothing; spans are joined by a left fold in
ascending order. A tile that a row does not see adds exact zeros. So neither other rows, requests, pages nor
the cut into programs change a bit, and a chain, cut anyhow, equals plain decoding.

Tiles have 64 rows even for one query: wgmma and tcgen05 have no fewer, and tiles of other sizes (with
mma.sync, or other lanes that add a row's weights) would not be known to give the same bits. It costs
little: 64 rows are 64 operations a byte of bf16 keys, where an H100 has about 300 for a byte of its memory.
Large heads whose queries enter in two parts have 32 or 16 rows, for mma.sync: 64 would spill.

Spans of a row go to several programs where there are few rows; each span's state is then stored, and a
second launch folds them (the last program to arrive could, but a read of what other programs wrote is what
the race checker must report).

Shared prefixes (prefix_groups.py): where requests have few rows each, whole spans that consecutive requests
begin with are read once, by row tiles with the rows of all of them. These store their spans as programs that
split a row tile do, each request's own programs do the others, and the second launch folds all: the same bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyspec.contract import DTYPE_NAMES

from .aot import AotCase
from .append_kv import raw
from .attention_config import SPAN, Config, is_split, pick_config
from .attention_tile import attend_tiles, finish, fold, fold_in_memory, is_chain_up_to, low_slots
from .dots import rows
from .prefix_groups import BLOCK_W, common_kernel, group_tile, spans_of_group

MAX_D = 256  # padded to a power of two with masks, and to the 16 that a product needs
FOLD_STAGES = tl.constexpr(8)  # stored spans on their way at once: one after another, each waits for memory
LOG2_E = 1.4426950408889634
TYPES = {
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "i8": torch.int8,
    "u8": torch.float8_e4m3fn,
}  # Triton's names of queries' and pages'


@triton.jit
def request_of_item(cu_t_ptr, index, B, WEIGHT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_B: tl.constexpr):
    """The request that has item `index` when n nodes have ceil(n WEIGHT / BLOCK) items, and its first item.

    B itself if there are fewer items.
    """
    offs_b = tl.arange(0, BLOCK_B)
    nodes = tl.load(cu_t_ptr + offs_b + 1, mask=offs_b < B, other=0) - tl.load(
        cu_t_ptr + offs_b, mask=offs_b < B, other=0
    )
    items = tl.cdiv(nodes * WEIGHT, BLOCK)
    before = tl.cumsum(items, 0) <= index
    return tl.sum((before & (offs_b < B)).to(tl.int32), 0), tl.sum(tl.where(before, items, 0), 0)


@triton.jit
def attend_kernel(
    q_ptr, k_pages_ptr, v_pages_ptr, k_scale_ptr, v_scale_ptr, sinks_ptr, table_ptr, kv_len_ptr, cu_t_ptr,
    parents_ptr, common_ptr, out_ptr, lse_ptr, partial_ptr, state_ptr, T, H, B, window, factor, inner,
    shared_programs, tiles, parts, q_stride_t, q_stride_h, table_stride_b, k_stride_p, k_stride_s, k_stride_g,
    v_stride_p, v_stride_s, v_stride_g, k_scale_stride_p, k_scale_stride_s, k_scale_stride_g,
    v_scale_stride_p, v_scale_stride_s, v_scale_stride_g, STORES: tl.constexpr, R: tl.constexpr,
    S: tl.constexpr, D: tl.constexpr, SPAN: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    F16: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_B: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """Rows [BLOCK_M] of a request and KV head over the spans of one part.

    Gives their results, or the state of every span if STORES. With common_ptr, the first `shared_programs` have
    rows of groups of requests, over the spans that a group shares, and the others leave these spans out.
    """
    index = tl.program_id(0)
    is_shared = False
    if common_ptr is not None:
        is_shared = index < shared_programs
        index = tl.where(is_shared, index, index - shared_programs)
    part, tile = 0, index
    if STORES:
        part, tile = index // tiles, index % tiles
    b, first_tile = request_of_item(cu_t_ptr, tile, B, R, BLOCK_M, BLOCK_B)
    tile, end_b, shared = tile - first_tile, b + 1, 0
    if common_ptr is not None:
        if is_shared:
            b, end_b, shared, tile, part, parts = group_tile(
                common_ptr, cu_t_ptr, index, shared_programs, B, R, BLOCK_M, BLOCK_B
            )
        else:
            shared = spans_of_group(common_ptr, b, B, BLOCK_B)
    if b >= B:
        return
    g = tl.program_id(1)
    t0, L = tl.load(cu_t_ptr + b), tl.load(kv_len_ptr + b)
    nodes = tl.load(cu_t_ptr + end_b) - t0
    row0 = tile * BLOCK_M
    offs_m = row0 + tl.arange(0, BLOCK_M)
    mask_m = offs_m < nodes * R
    node, head = offs_m // R, g * R + offs_m % R
    first_node, last_node = row0 // R, tl.minimum(nodes - 1, (row0 + BLOCK_M - 1) // R)
    parents_ptr += t0

    # Rows of a group see all slots that it shares, as a chain would behind them, and read no others here.
    L = tl.where(is_shared, shared * SPAN, L)
    is_chain = is_chain_up_to(parents_ptr, tl.where(is_shared, -1, last_node))
    start = tl.where(is_chain | ~mask_m, -1, node)  # where a row's walk to the root begins
    low = low_slots(parents_ptr, node, start, is_chain, L, window) if WINDOW else node * 0
    high = L + tl.where(is_chain | (PLANTED_BUG == "siblings"), node + 1 + (PLANTED_BUG == "future"), 0)
    high = tl.where(mask_m, high, 0)
    # All rows see slots [whole_begin, whole_end); none sees slots outside of [begin, end).
    end = L + last_node + 1
    begin = tl.min(tl.where(mask_m, low, end), 0)
    if STORES:  # the root's: what fold_kernel expects of every row
        begin = tl.maximum(0, L - window + 1) if WINDOW else 0
    end = tl.where(is_shared, L, end)
    begin = tl.maximum(begin, tl.where(is_shared, 0, shared * SPAN))
    whole_begin = tl.max(tl.where(mask_m, low, 0), 0)
    whole_end = tl.where(is_chain, L + first_node + 1, L)

    offs_d = tl.arange(0, BLOCK_D)
    q_ptrs = (
        q_ptr + (t0 + node).to(tl.int64)[:, None] * q_stride_t + head[:, None] * q_stride_h + offs_d[None, :]
    )
    mask = mask_m[:, None] & (offs_d < D)[None, :] if D < BLOCK_D else mask_m[:, None]
    half: tl.constexpr = tl.float16 if F16 else tl.bfloat16
    if SPLIT:
        q_wide = tl.load(q_ptrs, mask=mask, other=0.0).to(tl.float32)
        q = q_wide.to(half)
        q_low = (q_wide - q.to(tl.float32)).to(half)
    else:
        q = tl.load(q_ptrs, mask=mask, other=0.0).to(half)
        q_low = q

    k_pages_ptr += g * k_stride_g
    v_pages_ptr += g * v_stride_g
    if k_scale_ptr is not None:
        k_scale_ptr += g * k_scale_stride_g
        v_scale_ptr += g * v_scale_stride_g
    table_ptr += b.to(tl.int64) * table_stride_b
    # Where the state of a span waits: by span, node and head for fold_kernel, by program for the next span.
    if STORES:
        offs_state = node * H + head
        base, span_stride = t0.to(tl.int64) * H, tl.cast(T, tl.int64) * H
        if PLANTED_BUG == "shared span":
            span_stride = span_stride * 0
    else:
        base = (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + g) * 2 * BLOCK_M
        state_ptr += base * 2
        partial_ptr += base * BLOCK_D

    first_span, last_span = begin // SPAN, tl.cdiv(end, SPAN)
    part_spans = tl.cdiv(last_span - first_span, parts)
    first_span += part * part_spans
    last_span = tl.minimum(last_span, first_span + part_spans)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # Hoisted addresses of shared memory would be up to 140 registers in the loop over tiles.
    for index in tl.range(0, last_span - first_span, num_stages=1, disable_licm=True):
        span = first_span + index
        span_begin = tl.maximum(span * SPAN, begin // BLOCK_N * BLOCK_N)
        span_end = tl.minimum((span + 1) * SPAN, end)
        whole_tile = tl.minimum(tl.maximum(span_begin, tl.cdiv(whole_begin, BLOCK_N) * BLOCK_N), span_end)
        tail_tile = tl.maximum(whole_tile, tl.minimum(span_end, whole_end) // BLOCK_N * BLOCK_N)
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        # The window's edge, what all rows see, the last tiles.
        for stage in tl.static_range(0 if WINDOW else 1, 3):
            row_max, row_sum, acc = attend_tiles(
                q, q_low, row_max, row_sum, acc,
                span_begin if stage == 0 else whole_tile if stage == 1 else tail_tile,
                whole_tile if stage == 0 else tail_tile if stage == 1 else span_end, end, L, low, high,
                start, window, parents_ptr, table_ptr, k_pages_ptr, v_pages_ptr, k_scale_ptr, v_scale_ptr,
                k_stride_p, k_stride_s, v_stride_p, v_stride_s, k_scale_stride_p, k_scale_stride_s,
                v_scale_stride_p, v_scale_stride_s, factor, inner, S, D, WINDOW, SOFTCAP, SPLIT, BLOCK_N,
                BLOCK_D, stage != 1, PLANTED_BUG,
            )  # fmt: skip
        if STORES:
            place = base + span * span_stride
            # span >> 30 is 0, but makes the offsets part of the loop: hoisted out of it, they would be 32
            # registers in it.
            offs_place = offs_state + (span >> 30)
            state_ptrs = state_ptr + place * 2 + offs_place * 2
            partial_ptrs = partial_ptr + place * D + (offs_place[:, None] * D + offs_d[None, :])
            tl.store(state_ptrs, row_max, mask=mask_m)
            tl.store(state_ptrs + 1, row_sum, mask=mask_m)
            tl.store(partial_ptrs, acc, mask=mask)
        elif last_span - first_span > 1:
            fold_in_memory(
                partial_ptr, state_ptr, row_max, row_sum, acc, span == first_span, BLOCK_M, BLOCK_D
            )
    if not STORES:
        if last_span - first_span > 1:
            offs_state = tl.arange(0, BLOCK_M)
            row_max, row_sum = tl.load(state_ptr + offs_state * 2), tl.load(state_ptr + offs_state * 2 + 1)
            acc = tl.load(partial_ptr + offs_state[:, None] * BLOCK_D + offs_d[None, :])
        # Rows and masks are computed again, from a value loaded again: kept over the loop, they would spill.
        offs_m = row0 + (tl.load(cu_t_ptr + b) - t0) + tl.arange(0, BLOCK_M)
        mask_m = offs_m < nodes * R
        mask = mask_m[:, None] & (offs_d < D)[None, :] if D < BLOCK_D else mask_m[:, None]
        head = g * R + offs_m % R
        row = (t0 + offs_m // R).to(tl.int64) * H + head
        out_ptrs = out_ptr + row[:, None] * D + offs_d[None, :]
        finish(row_max, row_sum, acc, sinks_ptr, head, mask_m, out_ptrs, mask, lse_ptr + row)


@triton.jit
def fold_kernel(
    partial_ptr, state_ptr, sinks_ptr, kv_len_ptr, cu_t_ptr, out_ptr, lse_ptr, T, H, B, window,
    D: tl.constexpr, SPAN: tl.constexpr, WINDOW: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Joins the stored spans of one node's heads, as a program with one part does with its own."""
    t = tl.program_id(0)
    b, t0 = request_of_item(cu_t_ptr, t, B, 1, 1, BLOCK_B)
    if b >= B:
        return
    L = tl.load(kv_len_ptr + b)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask_h = head < H
    offs_d = tl.arange(0, BLOCK_D)
    mask = mask_h[:, None] & (offs_d < D)[None, :]
    row = t.to(tl.int64) * H + head
    total_max = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total_sum = tl.zeros([BLOCK_H], tl.float32)
    total = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
    first_span = tl.maximum(0, L - window + 1) // SPAN if WINDOW else 0
    for span in tl.range(first_span, (L + t - t0) // SPAN + 1, num_stages=FOLD_STAGES):
        place = tl.cast(span, tl.int64) * T * H + row
        acc = tl.load(partial_ptr + place[:, None] * D + offs_d[None, :], mask=mask, other=0.0)
        row_max = tl.load(state_ptr + place * 2, mask=mask_h, other=0.0)
        row_sum = tl.load(state_ptr + place * 2 + 1, mask=mask_h, other=0.0)
        total_max, total_sum, total = fold(total_max, total_sum, total, row_max, row_sum, acc)
    out_ptrs = out_ptr + row[:, None] * D + offs_d[None, :]
    finish(total_max, total_sum, total, sinks_ptr, head, mask_h, out_ptrs, mask, lse_ptr + row)


def limit(
    sizes: dict[str, int], *args: Tensor | None, kv_layout: str = "paged", **kwargs: object
) -> str | None:
    """Why the kernel cannot run a call, or None."""
    D, k_pages, v_pages = sizes["D"], args[1], args[2]
    assert k_pages is not None
    assert v_pages is not None
    if D > MAX_D:
        return f"D must be at most {MAX_D}, got {D}"
    if k_pages.dtype == torch.float32:
        return f"k_pages must be bf16|f16|f8|i8 (tensor cores take 16 bits), got {DTYPE_NAMES[k_pages.dtype]}"
    if k_pages.stride(3) != 1 or v_pages.stride(3) != 1:
        return f"k_pages and v_pages must have a dense last dimension, got strides {list(k_pages.stride())}"
    return None if kv_layout == "paged" else f"kv_layout must be paged, got {kv_layout}"


def tree_attention(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor, cu_t: Tensor,
    parents: Tensor, k_scale: Tensor | None = None, v_scale: Tensor | None = None,
    sinks: Tensor | None = None, *, scale: float, window: int = 0, softcap: float = 0.0,
    kv_layout: str = "paged",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Every node's attention over the slots it sees: out [T, H, D] like q, and lse [T, H] f32."""
    (T, H, D), (_, S, G, _), (B, W) = q.shape, k_pages.shape, page_table.shape
    c = pick_config(T, H, G, D, B, W * S, q.dtype, k_pages.dtype, window)
    args = (q, k_pages, v_pages, page_table, kv_len, cu_t, parents, k_scale, v_scale, sinks)
    return _launch(*args, c, scale, window, softcap)


def _launch(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor, cu_t: Tensor,
    parents: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, sinks: Tensor | None, c: Config,
    scale: float, window: int, softcap: float, bug: str = "",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (T, H, D), (_, S, G, _), B = q.shape, k_pages.shape, kv_len.size(0)
    out, lse = q.new_empty(q.shape), q.new_empty(T, H, dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    q, page_table, kv_len, cu_t = rows(q), rows(page_table), kv_len.contiguous(), cu_t.contiguous()
    block_d, block_b = max(16, triton.next_power_of_2(D)), triton.next_power_of_2(B)
    states = c.spans * T * H if c.stores else 2 * c.tiles * G * c.block_m if c.spans > 1 else 0
    partial, state = (q.new_empty(states, n, dtype=torch.float32) for n in (D if c.stores else block_d, 2))
    common = None
    if c.shared_programs:
        common = kv_len.new_empty(B)
        common_kernel[(B,)](
            page_table, kv_len, cu_t, common, page_table.stride(0), S=S, SPAN=c.span, BLOCK_W=BLOCK_W,
            PLANTED_BUG=bug, num_warps=4,
        )  # fmt: skip
    scale_strides = [0 if x is None else x.stride(i) for x in (k_scale, v_scale) for i in range(3)]
    attend_kernel[(c.programs, G)](
        q, raw(k_pages), raw(v_pages), k_scale, v_scale, sinks, page_table, kv_len, cu_t,
        parents.contiguous(), common, out, lse, partial, state, T, H, B, window, (softcap or scale) * LOG2_E,
        scale / softcap if softcap else 1.0, c.shared_programs, c.tiles, c.parts, *q.stride()[:2],
        page_table.stride(0), *k_pages.stride()[:3], *v_pages.stride()[:3], *scale_strides, STORES=c.stores,
        R=H // G, S=S, D=D, SPAN=c.span, WINDOW=window > 0, SOFTCAP=softcap > 0,
        F16=k_pages.dtype == torch.float16, SPLIT=is_split(q.dtype, k_pages.dtype), BLOCK_M=c.block_m,
        BLOCK_N=c.block_n, BLOCK_D=block_d, BLOCK_B=block_b, PLANTED_BUG=bug, num_warps=c.num_warps,
        **c.options,
    )  # fmt: skip
    if c.stores:
        block_h = min(4, triton.next_power_of_2(H))
        fold_kernel[(T, triton.cdiv(H, block_h))](
            partial, state, sinks, kv_len, cu_t, out, lse, T, H, B, window, D=D, SPAN=c.span,
            WINDOW=window > 0, BLOCK_H=block_h, BLOCK_D=block_d, BLOCK_B=block_b,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out, lse


def aot_cases() -> list[AotCase]:
    """bf16 and f32 queries over bf16 pages by head dim, 8-bit pages, a window, stored spans, shared ones, their fold."""
    usual = [(f"D{D}-{q}", D, q, "bf16", "") for D in (64, 96, 128, 256) for q in ("bf16", "fp32")]
    more = [
        ("D128-e4m3", 128, "bf16", "u8", ""),
        ("D128-i8", 128, "fp32", "i8", ""),
        ("D128-e4m3-fp32", 128, "fp32", "u8", ""),
        ("D256-i8", 256, "bf16", "i8", ""),
        ("D256-i8-fp32", 256, "fp32", "i8", ""),
        ("D128-window", 128, "bf16", "bf16", "window"),
        ("D64-parts", 64, "bf16", "bf16", "parts"),
        ("D128-parts", 128, "bf16", "bf16", "parts"),
        ("D256-i8-parts", 256, "bf16", "i8", "parts"),
        ("D64-groups", 64, "bf16", "bf16", "groups"),
        ("D128-groups", 128, "bf16", "bf16", "groups"),
        ("D128-i8-fp32-groups", 128, "fp32", "i8", "groups"),
        ("D256-groups", 256, "bf16", "bf16", "groups"),
        ("D256-i8-groups", 256, "bf16", "i8", "groups"),
    ]
    cases = []
    for name, D, q, page, kind in usual + more:
        c = pick_config(64, 32, 8, D, 8, 4096, TYPES[q], TYPES[page])
        c = replace(c, parts=4 if kind == "parts" else 1, shared_programs=33 if kind == "groups" else 0)
        constants: dict[str, object] = {
            "STORES": c.stores, "R": 4, "S": 16, "D": D, "SPAN": SPAN, "WINDOW": kind == "window",
            "SOFTCAP": False, "F16": False, "SPLIT": q == "fp32", "BLOCK_M": c.block_m, "BLOCK_N": c.block_n,
            "BLOCK_D": triton.next_power_of_2(D), "BLOCK_B": 8, "PLANTED_BUG": "", "sinks_ptr": None,
        }  # fmt: skip
        if kind != "groups":
            constants |= {"common_ptr": None}
        if not c.stores:
            constants |= {"parts": 1}
        if page == "bf16":
            constants |= {"k_scale_ptr": None, "v_scale_ptr": None}
        types = {"q_ptr": f"*{q}", "out_ptr": f"*{q}", "k_pages_ptr": f"*{page}", "v_pages_ptr": f"*{page}"}
        cases.append(_aot_case(f"tree_attention-{name}", attend_kernel, types, constants, c))
    constants = {
        "D": 128, "SPAN": SPAN, "WINDOW": False, "BLOCK_H": 4, "BLOCK_D": 128, "BLOCK_B": 8,
        "sinks_ptr": None,
    }  # fmt: skip
    fold = Config(SPAN, 64, 32, 4, 1, 1, 1)
    cases.append(_aot_case("tree_attention-fold", fold_kernel, {"out_ptr": "*bf16"}, constants, fold))
    constants = {"S": 16, "SPAN": SPAN, "BLOCK_W": BLOCK_W, "PLANTED_BUG": ""}
    cases.append(_aot_case("tree_attention-common", common_kernel, {}, constants, fold))
    return cases


def _aot_case(
    name: str, kernel: Any, types: dict[str, str], constants: dict[str, object], c: Config
) -> AotCase:
    floats = ("k_scale_ptr", "v_scale_ptr", "lse_ptr", "partial_ptr", "state_ptr", "sinks_ptr")
    types = types | dict.fromkeys(floats, "*fp32") | {"factor": "fp32", "inner": "fp32"}
    kinds = {n: types.get(n, "*i32" if n.endswith("_ptr") else "i32") for n in kernel.arg_names}
    signature = {n: "constexpr" if n in constants else kind for n, kind in kinds.items()}
    return AotCase(name, kernel, signature, constants, c.num_warps, options=c.options)
