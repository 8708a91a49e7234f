# SPDX-License-Identifier: Apache-2.0
"""w4a16_linear in Triton: float rows times a 4-bit weight with a scale per group.

Specification: pyspec/spec/w4a16_linear.py.

    groups in order of k:    acc = fma(sum over (at most 64 of) the group of x * (q - zero), scale, acc)
    one group (size -1):     out = (sum of x * (q - zero)) * scale
    act-order (g_idx):       out = sum of x * ((q - zero) * scale)

q - 8 is exact in bf16. With zero points of any value q - zero, and with g_idx the weight, enter as two bf16
halves.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .aot import AotCase
from .dots import (
    SIZE_TYPES,
    Config,
    dot,
    has_tma,
    load_columns,
    load_rows,
    partials,
    rows,
    store_columns,
    sum_parts,
    tiles_of,
)
from .dots import pick_config as pick_tiles
from .tuned import tunable


@triton.jit(do_not_specialize=["M"])
def w4a16_linear_kernel(
    x_ptr, qweight_ptr, scales_ptr, zeros_ptr, g_idx_ptr, out_ptr, M, N, K, x_stride_m, weight_stride_n,
    scales_stride_n, zeros_stride_n, out_stride_p, out_stride_m, part_k, GROUP: tl.constexpr,
    PARTS: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """One tile of out, or of one part of K of it. A step lies within a group, unless there is g_idx."""
    first_n = tl.program_id(0) * BLOCK_N
    offs_n = (first_n + tl.arange(0, BLOCK_N)).to(tl.int64)
    offs_m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    mask_n, mask_m = offs_n < N, offs_m < M
    first = tl.program_id(2)
    last = first + 1 if SPLIT else PARTS
    scales_ptrs = scales_ptr + offs_n * scales_stride_n
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for part in range(first, last):
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for k in range(part * part_k, min(K, (part + 1) * part_k), BLOCK_K):
            offs_k, offs_byte = k + tl.arange(0, BLOCK_K), k // 2 + tl.arange(0, BLOCK_K // 2)
            x = load_columns(x_ptr, offs_m, offs_k, x_stride_m, mask_m, offs_k < K)
            mask_byte = offs_byte < (K if PLANTED_BUG == "no mask" else K // 2)
            nibbles = load_rows(
                qweight_ptr, first_n, k // 2, offs_n, offs_byte, weight_stride_n, mask_n, mask_byte
            )
            w = tl.interleave(nibbles & 15, nibbles >> 4).to(tl.float32)
            if g_idx_ptr is not None:  # every column has its own group
                group = tl.load(g_idx_ptr + offs_k, mask=offs_k < K, other=0)[None, :]
                mask_w = mask_n[:, None] & (offs_k < K)[None, :]
            else:
                group = tl.zeros([1, 1], tl.int32) + (k // GROUP if GROUP > 0 else 0)
                mask_w = mask_n[:, None]
            if zeros_ptr is not None:
                w -= tl.load(zeros_ptr + offs_n[:, None] * zeros_stride_n + group, mask=mask_w, other=0.0).to(
                    tl.float32
                )
            else:
                w -= 7.0 if PLANTED_BUG == "zero 7" else 8.0
            if g_idx_ptr is not None:
                w *= tl.load(scales_ptrs[:, None] + group, mask=mask_w, other=0.0).to(tl.float32)
            elif zeros_ptr is None:
                w = w.to(tl.bfloat16)
            if GROUP > 0 and g_idx_ptr is None:
                scale = tl.load(
                    scales_ptrs + (0 if PLANTED_BUG == "first scale" else k // GROUP), mask=mask_n, other=0.0
                ).to(tl.float32)
                product = dot(w, x, tl.zeros([BLOCK_N, BLOCK_M], tl.float32))
                acc = tl.fma(product, tl.broadcast_to(scale[:, None], [BLOCK_N, BLOCK_M]), acc)
            else:
                acc = dot(w, x, acc)
        if GROUP == -1 and g_idx_ptr is None:
            acc *= tl.load(scales_ptrs, mask=mask_n, other=0.0).to(tl.float32)[:, None]
        total += acc
    out_ptr += (0 if PLANTED_BUG == "one part" else first.to(tl.int64)) * out_stride_p
    store_columns(out_ptr, total, offs_m, offs_n, out_stride_m, mask_m, mask_n)


@tunable("w4a16_linear")
def pick_config(m: int, n: int, k: int, group_size: int, act_order: bool) -> Config:
    """The launch for x [m, k] and a weight [n, k].

    Parts of K hold whole groups; act-order fetches a scale per weight.
    """
    block_k = 32 if act_order or group_size == 32 else 64
    return pick_tiles(m, n, k, block_k=block_k, unit_k=max(64, group_size), area=64 * 128)


def w4a16_linear(
    x: Tensor, qweight: Tensor, scales: Tensor, zeros: Tensor | None = None, g_idx: Tensor | None = None, *,
    group_size: int,
) -> Tensor:  # fmt: skip
    """x [M, K] times the transpose of a 4-bit weight [N, K], as [M, N] f32."""
    c = pick_config(x.size(0), qweight.size(0), x.size(1), group_size, g_idx is not None)
    return _launch(x, qweight, scales, zeros, g_idx, group_size, c, tma=has_tma())


def _launch(
    x: Tensor, qweight: Tensor, scales: Tensor, zeros: Tensor | None, g_idx: Tensor | None, group_size: int,
    c: Config, bug: str = "", *, tma: bool = False,
) -> Tensor:  # fmt: skip
    (m, k), n = x.shape, qweight.size(0)
    out = x.new_empty(m, n, dtype=torch.float32)
    if out.numel() == 0:
        return out
    x, qweight, scales, partial = rows(x), rows(qweight), rows(scales), partials(c, out)
    zeros = None if zeros is None else rows(zeros)
    g_idx = None if g_idx is None else g_idx.contiguous()
    tiles = tiles_of(qweight, c.block_n, c.block_k // 2, tma)
    w4a16_linear_kernel[c.grid(m, n)](
        x, tiles, scales, zeros, g_idx, partial, m, n, k, x.stride(0), qweight.stride(0), scales.stride(0),
        0 if zeros is None else zeros.stride(0), partial.stride(0), partial.stride(1), c.part_k,
        GROUP=group_size, PLANTED_BUG=bug, **c.constants, **c.options,
    )  # fmt: skip
    if c.split:
        sum_parts(partial, None, out)
    return out


def aot_cases() -> list[AotCase]:
    """One row and a chunk of a prompt: symmetric (also by descriptors), with zero points, in act-order, one group."""
    cases = []
    for m, n, k in ((1, 4096, 4096), (512, 4096, 4096)):
        for group, kind in ((128, "symmetric"), (32, "zeros"), (128, "act-order"), (-1, "symmetric")):
            signature = {
                "x_ptr": "*fp32", "qweight_ptr": "*u8", "scales_ptr": "*fp16", "zeros_ptr": "*fp16",
                "g_idx_ptr": "*i32",
                "out_ptr": "*fp32", "scales_stride_n": "i32", "zeros_stride_n": "i32", **SIZE_TYPES,
            }  # fmt: skip
            constants: dict[str, Any] = {"GROUP": group}
            if kind == "symmetric":
                constants |= {"zeros_ptr": None}
            if kind != "act-order":
                constants |= {"g_idx_ptr": None}
            c = pick_config(m, n, k, group, kind == "act-order")
            name = f"w4a16_linear-{kind}-g{group}-M{m}-N{n}-K{k}"
            descriptors = ("", "qweight_ptr") if (group, kind) == (128, "symmetric") else ("",)
            cases += [c.aot_case(name, w4a16_linear_kernel, signature, constants, d, 2) for d in descriptors]
    return cases
