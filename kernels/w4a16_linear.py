# SPDX-License-Identifier: Apache-2.0
"""w4a16_linear in Triton: float rows times a 4-bit weight with a scale per group. Specification: pyspec/spec/w4a16_linear.py.

    groups in order of k:    acc = fma(sum over the group of x * (q - zero), scale, acc)
    one group (size -1):     out = (sum of x * (q - zero)) * scale
    act-order (g_idx):       out = sum of x * ((q - zero) * scale)

q - 8 is exact in bf16. With zero points of any value q - zero, and with g_idx the weight, enter as two bf16 halves.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyspec import spec

from .dots import Config, dot, dots_of, partials, rows, sum_parts
from .dots import pick_config as pick_tiles


@triton.jit
def w4a16_linear_kernel(
    x_ptr, qweight_ptr, scales_ptr, zeros_ptr, g_idx_ptr, out_ptr, M, N, K, x_stride_m, qweight_stride_n,
    scales_stride_n, zeros_stride_n, out_stride_p, out_stride_m, part_k, GROUP: tl.constexpr, PARTS: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of out, or of one part of K of it. A step is a whole group where there are groups without g_idx."""
    offs_n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
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
            x = tl.load(
                x_ptr + offs_m[None, :] * x_stride_m + offs_k[:, None],
                mask=mask_m[None, :] & (offs_k < K)[:, None],
                other=0.0,
            )
            nibbles = tl.load(
                qweight_ptr + offs_n[:, None] * qweight_stride_n + offs_byte[None, :],
                mask=mask_n[:, None] & (offs_byte < K // 2)[None, :],
                other=0,
            )
            w = tl.interleave(nibbles & 15, nibbles >> 4).to(tl.float32)
            if g_idx_ptr is not None:  # every column has its own group
                group = tl.load(g_idx_ptr + offs_k, mask=offs_k < K, other=0)[None, :]
                mask_w = mask_n[:, None] & (offs_k < K)[None, :]
            else:
                group = tl.zeros([1, 1], tl.int32) + (k // GROUP if GROUP > 0 else 0)
                mask_w = mask_n[:, None]
            if zeros_ptr is not None:
                w -= tl.load(zeros_ptr + offs_n[:, None] * zeros_stride_n + group, mask=mask_w, other=0.0).to(tl.float32)
            else:
                w -= 8.0
            if g_idx_ptr is not None:
                w *= tl.load(scales_ptrs[:, None] + group, mask=mask_w, other=0.0).to(tl.float32)
            elif zeros_ptr is None:
                w = w.to(tl.bfloat16)
            if GROUP > 0 and g_idx_ptr is None:
                scale = tl.load(scales_ptrs + k // GROUP, mask=mask_n, other=0.0).to(tl.float32)
                product = dot(w, x, tl.zeros([BLOCK_N, BLOCK_M], tl.float32))
                acc = tl.fma(product, tl.broadcast_to(scale[:, None], [BLOCK_N, BLOCK_M]), acc)
            else:
                acc = dot(w, x, acc)
        if GROUP == -1 and g_idx_ptr is None:
            acc *= tl.load(scales_ptrs, mask=mask_n, other=0.0).to(tl.float32)[:, None]
        total += acc
    out_ptrs = out_ptr + first.to(tl.int64) * out_stride_p + offs_m[None, :] * out_stride_m + offs_n[:, None]
    tl.store(out_ptrs, total, mask=mask_n[:, None] & mask_m[None, :])


def pick_config(m: int, n: int, k: int, group_size: int, act_order: bool, dots: int = 2) -> Config:
    """The launch for x [m, k] and a weight [n, k]: parts of K hold whole groups."""
    block_k = 64 if group_size == -1 or act_order else group_size
    return pick_tiles(m, n, k, block_k=block_k, unit_k=max(64, block_k), dots=dots)


def w4a16_linear(
    x: Tensor, qweight: Tensor, scales: Tensor, zeros: Tensor | None = None, g_idx: Tensor | None = None, *,
    group_size: int,
) -> Tensor:  # fmt: skip
    """x [M, K] times the transpose of a 4-bit weight [N, K], as [M, N] f32."""
    sizes = spec.w4a16_linear.bind((x, qweight, scales, zeros, g_idx))
    check_groups = spec.w4a16_linear.check
    assert check_groups is not None
    check_groups(sizes, x, qweight, scales, zeros, group_size=group_size)  # without g_idx: its values stay on the device
    m, n, k = sizes["M"], sizes["N"], sizes["K"]
    out = x.new_empty(m, n, dtype=torch.float32)
    if out.numel() == 0:
        return out
    wide = zeros is not None or g_idx is not None
    c = pick_config(m, n, k, group_size, g_idx is not None, dots_of(x, torch.float32 if wide else torch.bfloat16))
    x, qweight, scales, partial = rows(x), rows(qweight), rows(scales), partials(c, out)
    zeros = None if zeros is None else rows(zeros)
    grid = (triton.cdiv(n, c.block_n), triton.cdiv(m, c.block_m), c.parts if c.split else 1)
    w4a16_linear_kernel[grid](
        x, qweight, scales, zeros, None if g_idx is None else g_idx.contiguous(), partial, m, n, k, x.stride(0),
        qweight.stride(0), scales.stride(0), 0 if zeros is None else zeros.stride(0), partial.stride(0),
        partial.stride(1), c.part_k, GROUP=group_size, PARTS=c.parts, SPLIT=c.split, BLOCK_M=c.block_m,
        BLOCK_N=c.block_n, BLOCK_K=c.block_k, num_warps=c.num_warps, num_stages=c.num_stages,
    )  # fmt: skip
    if c.split:
        sum_parts(partial, None, out)
    return out
