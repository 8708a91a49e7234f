# SPDX-License-Identifier: Apache-2.0
"""rope in Triton: rotary position embedding by a table; the bits of pyspec/spec/rope.py."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from .aot import AotCase
from .dots import rows


@dataclass(frozen=True)
class Config:
    """Heads and (padded) head dim of one program, and its warps."""

    block_h: int
    block_d: int
    num_warps: int


def pick_config(heads: int, d: int) -> Config:
    """Tiles of up to 1024 elements of one token: 8 a thread."""
    block_d = triton.next_power_of_2(max(d, 1))
    block_h = min(max(1, 1024 // block_d), triton.next_power_of_2(max(heads, 1)))
    return Config(block_h, block_d, max(1, block_h * block_d // 256))


@triton.jit
def turned(x_ptrs, x, offs_d, mask, row_ptr, Y, INTERLEAVED: tl.constexpr, PLANTED_BUG: tl.constexpr):
    """x [h, d] f32 at x_ptrs, its first Y dims turned by the row of cosines and sines at row_ptr.

    Every element reads its partner again (from L1): pairs lie in one tile at any head dim and any Y, with
    no shuffle between threads.
    """
    if INTERLEAVED:
        is_second = offs_d % 2 == 1
        pair, to_partner = offs_d // 2, tl.where(is_second, -1, 1)
    else:
        is_second = offs_d >= Y // 2
        pair, to_partner = (
            tl.where(is_second, offs_d - Y // 2, offs_d),
            tl.where(is_second, -(Y // 2), Y // 2),
        )
    rotary = offs_d < Y
    partner = tl.load(x_ptrs + to_partner, mask=mask & (rotary | (PLANTED_BUG == "whole head")), other=0.0)
    cos = tl.load(row_ptr + pair, mask=rotary, other=1.0)
    sin = tl.load(row_ptr + Y // 2 + pair, mask=rotary, other=0.0)
    product = partner.to(tl.float32) * sin
    return tl.where(rotary, x * cos + tl.where(is_second, product, -product), x)


@triton.jit
def rope_kernel(
    x_ptr, positions_ptr, table_ptr, out_ptr, H, D, Y, x_stride_t, x_stride_h, table_stride_x,
    INTERLEAVED: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """Heads [BLOCK_H] of one token of x [T, H, D]."""
    t = tl.program_id(0).to(tl.int64)
    offs_h = (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)).to(tl.int64)[:, None]
    offs_d = tl.arange(0, BLOCK_D)[None, :]
    mask = (offs_h < H) & (offs_d < D)
    row_ptr = table_ptr + tl.load(positions_ptr + t).to(tl.int64) * table_stride_x
    x_ptrs = x_ptr + t * x_stride_t + offs_h * x_stride_h + offs_d
    x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    out = turned(x_ptrs, x, offs_d, mask, row_ptr, Y, INTERLEAVED, PLANTED_BUG)
    tl.store(out_ptr + (t * H + offs_h) * D + offs_d, out.to(out_ptr.dtype.element_ty), mask=mask)


def rope(x: Tensor, positions: Tensor, rope_table: Tensor, *, interleaved: bool = False) -> Tensor:
    """x [T, H, D] turned by the rows of rope_table [X, Y] that positions [T] name."""
    return _launch(x, positions, rope_table, interleaved)


def _launch(x: Tensor, positions: Tensor, rope_table: Tensor, interleaved: bool, bug: str = "") -> Tensor:
    t, h, d = x.shape
    out, c = x.new_empty(x.shape), pick_config(h, d)
    if out.numel():
        x, rope_table = rows(x), rows(rope_table)
        rope_kernel[(t, triton.cdiv(h, c.block_h))](
            x, positions.contiguous(), rope_table, out, h, d, rope_table.size(1), x.stride(0), x.stride(1),
            rope_table.stride(0), INTERLEAVED=interleaved, BLOCK_H=c.block_h, BLOCK_D=c.block_d,
            PLANTED_BUG=bug, num_warps=c.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def aot_cases() -> list[AotCase]:
    """32 heads of 128, in both orders of pairs."""
    c = pick_config(32, 128)
    signature = {
        "x_ptr": "*bf16", "positions_ptr": "*i32", "table_ptr": "*fp32", "out_ptr": "*bf16",
        **dict.fromkeys(("H", "D", "Y", "x_stride_t", "x_stride_h", "table_stride_x"), "i32"),
        **dict.fromkeys(("INTERLEAVED", "BLOCK_H", "BLOCK_D", "PLANTED_BUG"), "constexpr"),
    }  # fmt: skip
    constants = {"BLOCK_H": c.block_h, "BLOCK_D": c.block_d, "PLANTED_BUG": ""}
    return [
        AotCase(
            f"rope-{'interleaved' if interleaved else 'halves'}", rope_kernel, signature,
            {**constants, "INTERLEAVED": interleaved}, num_warps=c.num_warps,
        )
        for interleaved in (False, True)
    ]  # fmt: skip
