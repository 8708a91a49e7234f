# SPDX-License-Identifier: Apache-2.0
"""quant_linear in Triton: int8-quantised rows times GGUF rows as they are stored.

Specification: pyspec/spec/quant_linear.py.

Dot products of a group of 32 are exact int32; groups are folded in order, one fma each, so that the result
has the bits of the CPU kernels whatever the tile and M are, and K is never split. The packed layout is the
CPU kernels' own: refused.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pyspec.spec.quant_formats import FORMATS

from .aot import AotCase
from .dots import OPTIONS, rows
from .gguf import group_scales, group_values, row_multiplier
from .quantize_activations import quantize_activations
from .tuned import tunable


@dataclass(frozen=True)
class Config:
    """How one call is cut."""

    block_m: int
    block_n: int
    unroll: int  # groups whose bytes are fetched at once: few rows wait for memory
    num_warps: int
    num_stages: int


@triton.jit(do_not_specialize=["M"])
def quant_linear_kernel(
    xq_ptr, xd_ptr, sums_ptr, qweight_ptr, bias_ptr, out_ptr, M, N, K, qweight_stride_n, out_stride_m,
    FORMAT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr,
    PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """One tile of out."""
    offs_n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    offs_m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    mask_n = (offs_n < (N + BLOCK_N if PLANTED_BUG == "no mask" else N))[:, None]
    mask_m = (offs_m < M)[None, :]
    row_ptrs = qweight_ptr + offs_n[:, None] * qweight_stride_n
    groups = K // 32
    multiplier = row_multiplier(row_ptrs, mask_n, K, FORMAT)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for first in range(0, groups, UNROLL):
        for i in tl.static_range(UNROLL):  # groups beyond K add 0 * 0
            acc = add_group(
                acc, xq_ptr, xd_ptr, sums_ptr, row_ptrs, multiplier, offs_m[None, :], first + i, groups,
                mask_n & (first + i < groups), mask_m & (first + i < groups), FORMAT, PLANTED_BUG,
            )  # fmt: skip
    acc = acc * multiplier
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n[:, None], mask=mask_n, other=0.0)
    out_ptrs = out_ptr + offs_m[None, :] * out_stride_m + offs_n[:, None]
    if PLANTED_BUG == "one tile":
        out_ptrs -= tl.program_id(0) * BLOCK_N
    tl.store(out_ptrs, acc, mask=mask_n & mask_m)


@triton.jit
def add_group(
    acc, xq_ptr, xd_ptr, sums_ptr, row_ptrs, multiplier, offs_m, g, groups, mask_n, mask_m,
    FORMAT: tl.constexpr, PLANTED_BUG: tl.constexpr,
):  # fmt: skip
    """acc [BLOCK_N, BLOCK_M] plus group g."""
    k = tl.arange(0, 32)
    xq = tl.load(xq_ptr + (offs_m * groups + g) * 32 + k[:, None], mask=mask_m, other=0)
    xd = tl.load(xd_ptr + offs_m * groups + g, mask=mask_m, other=0.0)
    w = group_values(row_ptrs, g, mask_n, FORMAT)
    d, second = group_scales(row_ptrs, g, mask_n, FORMAT)
    d = rounded(d, multiplier, FORMAT) if PLANTED_BUG != "exact scale" else d / multiplier
    if FORMAT == "q6_k":  # a scale per 16 values: the other half of the group counts as zeros
        left = tl.dot(tl.where(k < 16, w, 0), xq, out_dtype=tl.int32).to(tl.float32)
        right = tl.dot(tl.where(k < 16, 0, w), xq, out_dtype=tl.int32).to(tl.float32)
        acc = tl.fma(left, d * xd, acc)
        acc = tl.fma(right, rounded(second, multiplier, FORMAT) * xd, acc)
    else:
        acc = tl.fma(tl.dot(w, xq, out_dtype=tl.int32).to(tl.float32), d * xd, acc)
        if FORMAT == "q4_1" or FORMAT == "q4_k":
            sums_ptrs = sums_ptr + (offs_m * groups + g) * 2
            total = tl.load(sums_ptrs, mask=mask_m, other=0) + tl.load(sums_ptrs + 1, mask=mask_m, other=0)
            xs, minimum = xd * total.to(tl.float32), rounded(second, multiplier, FORMAT)
            acc = tl.fma(tl.broadcast_to(xs, acc.shape), tl.broadcast_to(minimum, acc.shape), acc)
    return acc


@triton.jit
def rounded(scale, multiplier, FORMAT: tl.constexpr):
    """The scale that the op computes with: of K-quants 11 bits at the row's power of two."""
    if FORMAT == "q4_k" or FORMAT == "q6_k":
        return tl.div_rn(scale, multiplier).to(tl.float16).to(tl.float32)
    return scale


def limit(sizes: dict[str, int], *args: Any, **kwargs: Any) -> str | None:
    """Why this kernel cannot run a call."""
    if kwargs.get("layout", "rows") == "packed":
        return 'layout "packed" is that of the CPU kernels: pass GGUF rows'
    return None


@tunable("quant_linear")
def pick_config(m: int, n: int) -> Config:
    """Exact sums leave tiles free: few channels for few rows, so that many programs fetch the weight."""
    block_m = min(64, max(16, triton.next_power_of_2(m)))
    if block_m == 64:
        return Config(64, 64, 1, 8, 3)
    return Config(block_m, 64 if n >= 64 * 132 else 32 if n >= 32 * 132 else 16, 4, 4, 3)


def quant_linear(
    x: Tensor,
    qweight: Tensor,
    bias: Tensor | None = None,
    *,
    format: str,
    layout: str = "rows",
    num_rows: int = 0,
) -> Tensor:
    """x [M, K] quantised to int8 times the transpose of GGUF rows, as [M, N] f32."""
    return _launch(x, qweight, bias, format, pick_config(x.size(0), qweight.size(0)))


def _launch(x: Tensor, qweight: Tensor, bias: Tensor | None, format: str, c: Config, bug: str = "") -> Tensor:
    (m, k), n = x.shape, qweight.size(0)
    out = x.new_empty(m, n)
    if out.numel() == 0:
        return out
    qweight = rows(qweight)
    quant_linear_kernel[(triton.cdiv(n, c.block_n), triton.cdiv(m, c.block_m))](
        *quantize_activations(x), qweight, None if bias is None else bias.contiguous(), out, m, n, k,
        qweight.stride(0), out.stride(0), FORMAT=format, BLOCK_M=c.block_m, BLOCK_N=c.block_n,
        UNROLL=c.unroll, PLANTED_BUG=bug, num_warps=c.num_warps, num_stages=c.num_stages, **OPTIONS,
    )  # fmt: skip
    return out


def aot_cases() -> list[AotCase]:
    """Every format with one row and with a chunk of a prompt."""
    cases = []
    for format, m in itertools.product(FORMATS, (1, 512)):
        c = pick_config(m, 4096)
        constants = {
            "FORMAT": format,
            "BLOCK_M": c.block_m,
            "BLOCK_N": c.block_n,
            "UNROLL": c.unroll,
            "PLANTED_BUG": "",
        }
        signature = {
            "xq_ptr": "*i8", "xd_ptr": "*fp32", "sums_ptr": "*i32", "qweight_ptr": "*u8", "bias_ptr": "*fp32",
            "out_ptr": "*fp32", **dict.fromkeys(("M", "N", "K", "qweight_stride_n", "out_stride_m"), "i32"),
            **dict.fromkeys(constants, "constexpr"),
        }  # fmt: skip
        aligned = (
            "xq_ptr",
            "xd_ptr",
            "sums_ptr",
            "qweight_ptr",
            "bias_ptr",
            "out_ptr",
            "N",
            "K",
            "out_stride_m",
        )
        name = f"quant_linear-{format}-M{m}-N4096"
        cases.append(
            AotCase(name, quant_linear_kernel, signature, constants, c.num_warps, c.num_stages, aligned)
        )
    return cases
