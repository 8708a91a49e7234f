# SPDX-License-Identifier: Apache-2.0
"""tree_attention in Triton: requests that begin with the same pages, found on the device.

A group is a run of consecutive requests, each of which shares at least one whole span of slots with the one before
it; what all of them share is the least of these. The nodes of a group follow one another, so its row tiles are cut
as those of a request are. (The plan of the CUDA kernel forms the same groups.)
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK_W = 256  # columns of the page table that are compared at once


@triton.jit
def common_kernel(
    table_ptr, kv_len_ptr, cu_t_ptr, common_ptr, table_stride_b, S: tl.constexpr, SPAN: tl.constexpr,
    BLOCK_W: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """common[b]: whole spans that begin with the same pages as those of request b - 1; 0 for the first request.

    A request without nodes shares nothing: its row of the table may hold anything.
    """
    b = tl.program_id(0)
    same = 0  # leading columns that are equal
    if b > 0:
        t0, t1 = tl.load(cu_t_ptr + b - 1), tl.load(cu_t_ptr + b)
        if (t0 < t1) & (t1 < tl.load(cu_t_ptr + b + 1)):
            same = tl.minimum(tl.load(kv_len_ptr + b - 1), tl.load(kv_len_ptr + b)) // S
            row_ptr = table_ptr + b.to(tl.int64) * table_stride_b
            start = 0
            while start < same:
                columns = start + tl.arange(0, BLOCK_W)
                mask = columns < same
                own = tl.load(row_ptr + columns, mask=mask, other=0)
                before = tl.load(row_ptr - table_stride_b + columns, mask=mask, other=0)
                same = tl.minimum(same, tl.min(tl.where(own != before, columns, same), 0))
                start += BLOCK_W
    tl.store(common_ptr + b, same * S // SPAN + ((b > 0) if PLANTED_BUG == "long prefix" else 0))


@triton.jit
def larger(a, b):
    """What tl.associative_scan joins by: tl.maximum itself is no kernel."""
    return tl.maximum(a, b)


@triton.jit
def load_common(common_ptr, first, B, BLOCK_B: tl.constexpr):
    """common[first + i] for i < BLOCK_B; 0 behind the last request."""
    offs_b = first + tl.arange(0, BLOCK_B)
    return tl.load(common_ptr + offs_b, mask=offs_b < B, other=0)


@triton.jit
def group_tile(
    common_ptr, cu_t_ptr, index, programs, B, R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr
):  # fmt: skip
    """What program `index` of `programs` has of the groups' work.

    Gives the group's requests [first, end) and the spans they share, the row tile of the group, and which of how many
    parts of the spans. `first` is B for a program that has nothing: all groups have as many parts.
    """
    offs_b = tl.arange(0, BLOCK_B)
    common, after = load_common(common_ptr, 0, B, BLOCK_B), load_common(common_ptr, 1, B, BLOCK_B)
    is_last = (common > 0) & (after == 0)  # of its group
    first = tl.associative_scan(tl.where(common > 0, 0, offs_b), 0, larger)
    begin = tl.load(cu_t_ptr + first, mask=is_last, other=0)
    tiles = tl.cdiv((tl.load(cu_t_ptr + offs_b + 1, mask=is_last, other=0) - begin) * R, BLOCK_M)
    all_tiles = tl.sum(tiles, 0)
    count = tl.maximum(all_tiles, 1)
    tile, part, parts = index % count, index // count, programs // count

    before = tl.cumsum(tiles, 0) <= tile
    last = tl.sum(before.to(tl.int32), 0)
    tile -= tl.sum(tl.where(before, tiles, 0), 0)
    group_first = tl.sum(tl.where(offs_b == last, first, 0), 0)
    spans = tl.min(tl.where((offs_b > group_first) & (offs_b <= last), common, 2147483647), 0)
    idle = (all_tiles == 0) | (part >= parts)
    return tl.where(idle, B, group_first), last + 1, spans, tile, part, parts


@triton.jit
def spans_of_group(common_ptr, b, B, BLOCK_B: tl.constexpr):
    """Spans that request b shares with its group: the group's row tiles compute these. 0 without a group."""
    offs_b = tl.arange(0, BLOCK_B)
    common = load_common(common_ptr, 0, B, BLOCK_B)
    first = tl.max(tl.where((common == 0) & (offs_b <= b), offs_b, 0), 0)
    end = tl.min(tl.where((common == 0) & (offs_b > b), offs_b, B), 0)
    spans = tl.min(tl.where((offs_b > first) & (offs_b < end), common, 2147483647), 0)
    return tl.where(end > first + 1, spans, 0)
