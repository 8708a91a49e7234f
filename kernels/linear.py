# SPDX-License-Identifier: Apache-2.0
"""linear in Triton: x times the transpose of a weight, f32 or bf16, in f32. Specification: pyspec/spec/linear.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyspec import spec

from .dots import Config, dot, dots_of, partials, rows, sum_parts, zeros_where_empty
from .dots import pick_config as pick_tiles


@triton.jit
def linear_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, M, N, K, x_stride_m, weight_stride_n, out_stride_p, out_stride_m, part_k,
    PARTS: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of out, or of one part of K of it."""
    offs_n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    offs_m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    mask_n, mask_m = offs_n < N, offs_m < M
    first = tl.program_id(2)
    last = first + 1 if SPLIT else PARTS
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for part in range(first, last):
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for k in range(part * part_k, min(K, (part + 1) * part_k), BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            mask_k = offs_k < K
            x = tl.load(
                x_ptr + offs_m[None, :] * x_stride_m + offs_k[:, None], mask=mask_m[None, :] & mask_k[:, None], other=0.0
            )
            w = tl.load(
                weight_ptr + offs_n[:, None] * weight_stride_n + offs_k[None, :],
                mask=mask_n[:, None] & mask_k[None, :],
                other=0.0,
            )
            acc = dot(w, x, acc)
        total += acc
    if bias_ptr is not None and not SPLIT:
        total += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0)[:, None]
    out_ptrs = out_ptr + first.to(tl.int64) * out_stride_p + offs_m[None, :] * out_stride_m + offs_n[:, None]
    tl.store(out_ptrs, total, mask=mask_n[:, None] & mask_m[None, :])


def pick_config(m: int, n: int, k: int, weight_dtype: torch.dtype, dots: int = 1) -> Config:
    """The launch for x [m, k] and a weight [n, k]."""
    block_k = 32 if weight_dtype == torch.float32 else 64  # as many bytes a step
    return pick_tiles(m, n, k, block_k=block_k, unit_k=64, dots=dots)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] times the transpose of weight [N, K], plus bias [N], as [M, N] f32."""
    sizes = spec.linear.bind((x, weight, bias))
    m, n, k = sizes["M"], sizes["N"], sizes["K"]
    out = x.new_empty(m, n, dtype=torch.float32)
    if zeros_where_empty(out, k, bias):
        return out
    c = pick_config(m, n, k, weight.dtype, dots_of(x, weight.dtype))
    x, weight, partial = rows(x), rows(weight), partials(c, out)
    grid = (triton.cdiv(n, c.block_n), triton.cdiv(m, c.block_m), c.parts if c.split else 1)
    linear_kernel[grid](
        x, weight, bias, partial, m, n, k, x.stride(0), weight.stride(0), partial.stride(0), partial.stride(1),
        c.part_k, PARTS=c.parts, SPLIT=c.split, BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_K=c.block_k,
        num_warps=c.num_warps, num_stages=c.num_stages,
    )  # fmt: skip
    if c.split:
        sum_parts(partial, bias, out)
    return out
