# SPDX-License-Identifier: Apache-2.0
"""w8a8_linear in Triton: int8 rows times an int8 weight, exact sums, two scales.

Specification: pyspec/spec/w8a8_linear.py.

The int32 sums are exact, so no tile, instruction or number of rows can change a bit of the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .aot import AotCase
from .dots import OPTIONS, TMA_CAPABILITY, has_tma, load_columns, load_rows, rows, store_columns, tiles_of
from .tuned import tunable


@dataclass(frozen=True)
class Config:
    """How one call is cut."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


@triton.jit(do_not_specialize=["M"])
def w8a8_linear_kernel(
    x_ptr, weight_ptr, x_scale_ptr, w_scale_ptr, out_ptr, M, N, K, x_stride_m, weight_stride_n,
    out_stride_m, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """One tile of out. The weight is the left operand: see dots.py."""
    first_n = tl.program_id(0) * BLOCK_N
    offs_n = (first_n + tl.arange(0, BLOCK_N)).to(tl.int64)
    offs_m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    mask_n, mask_m = offs_n < N, offs_m < M
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
    for k in range(0, K, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < (K + BLOCK_K if PLANTED_BUG == "no mask" else K)
        x = load_columns(x_ptr, offs_m, offs_k, x_stride_m, mask_m, mask_k)
        w = load_rows(weight_ptr, first_n, k, offs_n, offs_k, weight_stride_n, mask_n, mask_k)
        acc = tl.dot(w, x, acc)
    w_scale = tl.load(w_scale_ptr + offs_n, mask=mask_n, other=0.0)
    x_scale = tl.load(x_scale_ptr + offs_m, mask=mask_m, other=0.0)
    if PLANTED_BUG == "rounded sum":
        acc = acc.to(tl.bfloat16)
    out = acc.to(tl.float32) * w_scale[:, None] * x_scale[None, :]
    if PLANTED_BUG == "one tile":
        out_ptr -= tl.program_id(0) * BLOCK_N
    store_columns(out_ptr, out.to(out_ptr.dtype.element_ty), offs_m, offs_n, out_stride_m, mask_m, mask_n)


@tunable("w8a8_linear")
def pick_config(m: int, n: int) -> Config:
    """Few channels a tile for few rows, so that many programs fetch the weight; large tiles for many."""
    block_m = min(128, max(16, triton.next_power_of_2(m)))
    if block_m <= 64:
        block_n = 64 if n >= 64 * 132 else 32 if n >= 32 * 132 else 16
        return Config(block_m, block_n, 128, 4, 4)
    return Config(block_m, 128, 128, 8, 3)


def w8a8_linear(
    x: Tensor, weight: Tensor, x_scale: Tensor, w_scale: Tensor, *, out_dtype: torch.dtype
) -> Tensor:
    """x [M, K] i8 times the transpose of weight [N, K] i8, scaled, as [M, N] of out_dtype."""
    c = pick_config(x.size(0), weight.size(0))
    return _launch(x, weight, x_scale, w_scale, out_dtype, c, tma=has_tma())


def _launch(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    out_dtype: torch.dtype,
    c: Config,
    bug: str = "",
    *,
    tma: bool = False,
) -> Tensor:
    (m, k), n = x.shape, weight.size(0)
    out = x.new_empty(m, n, dtype=out_dtype)
    if out.numel() == 0:
        return out
    x, weight = rows(x), rows(weight)
    tiles = tiles_of(weight, c.block_n, c.block_k, tma)
    w8a8_linear_kernel[(triton.cdiv(n, c.block_n), triton.cdiv(m, c.block_m))](
        x, tiles, x_scale.contiguous(), w_scale.contiguous(), out, m, n, k, x.stride(0), weight.stride(0),
        out.stride(0), BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_K=c.block_k, PLANTED_BUG=bug,
        num_warps=c.num_warps, num_stages=c.num_stages, **OPTIONS,
    )  # fmt: skip
    return out


def aot_cases() -> list[AotCase]:
    """One row, few rows and a chunk of a prompt, the last also by descriptors."""
    cases = []
    for m, n, tma in ((1, 576, False), (16, 4096, False), (512, 4096, False), (512, 4096, True)):
        c = pick_config(m, n)
        sizes = ("M", "N", "K", "x_stride_m", "weight_stride_n", "out_stride_m")
        constants = {"BLOCK_M": c.block_m, "BLOCK_N": c.block_n, "BLOCK_K": c.block_k, "PLANTED_BUG": ""}
        pointers = {
            "x_ptr": "*i8",
            "weight_ptr": "*i8",
            "x_scale_ptr": "*fp32",
            "w_scale_ptr": "*fp32",
            "out_ptr": "*bf16",
        }
        aligned = tuple(name for name in (*pointers, *sizes[1:]) if not (tma and name == "weight_ptr"))
        if tma:
            pointers["weight_ptr"] = f"tensordesc<i8[{c.block_n}, {c.block_k}]>"
        signature = {**pointers, **dict.fromkeys(sizes, "i32"), **dict.fromkeys(constants, "constexpr")}
        name = f"w8a8_linear-M{m}-N{n}{'-tma' if tma else ''}"
        cases.append(
            AotCase(
                name,
                w8a8_linear_kernel,
                signature,
                constants,
                c.num_warps,
                c.num_stages,
                aligned,
                least_capability=TMA_CAPABILITY if tma else 80,
            )  # fmt: skip
        )
    return cases
