# SPDX-License-Identifier: Apache-2.0
"""fp8_linear in Triton: float rows times an e4m3 weight with scales.

Specification: pyspec/spec/fp8_linear.py.

    block:            acc = fma(sum over (at most 64 of) the 128 k of a block of x * weight, scale, acc)
    tensor, channel:  out = (sum of x * weight) * scale

e4m3 is exact in bf16, so x decides the number of products. Its bits are moved by integer arithmetic: sm_80
converts no e4m3.
"""

from __future__ import annotations

import itertools

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
    zeros_where_empty,
)
from .dots import pick_config as pick_tiles
from .narrow import from_e4m3
from .tuned import tunable


@triton.jit(do_not_specialize=["M"])
def fp8_linear_kernel(
    x_ptr, weight_ptr, scale_ptr, out_ptr, M, N, K, x_stride_m, weight_stride_n, scale_stride_x,
    out_stride_p, out_stride_m, part_k, GRANULARITY: tl.constexpr, PARTS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """One tile of out, or of one part of K of it. A step lies within a block of scales."""
    first_n = tl.program_id(0) * BLOCK_N
    offs_n = (first_n + tl.arange(0, BLOCK_N)).to(tl.int64)
    offs_m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    mask_n, mask_m = offs_n < N, offs_m < M
    first = tl.program_id(2)
    last = first + 1 if SPLIT else PARTS
    if GRANULARITY == "block":
        scale_ptrs = scale_ptr + offs_n // 128 * scale_stride_x
    elif GRANULARITY == "channel":
        scale_ptrs = scale_ptr + offs_n * scale_stride_x
    else:
        scale_ptrs = scale_ptr + offs_n * 0
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for part in range(first, last):
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for k in range(part * part_k, min(K, (part + 1) * part_k), BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            mask_k = offs_k < (part * part_k + 1000 if PLANTED_BUG == "no mask" else K)
            x = load_columns(x_ptr, offs_m, offs_k, x_stride_m, mask_m, mask_k)
            code = load_rows(weight_ptr, first_n, k, offs_n, offs_k, weight_stride_n, mask_n, mask_k)
            w = from_e4m3(code & 0x7F if PLANTED_BUG == "no sign" else code)
            if GRANULARITY == "block":
                scale = tl.load(
                    scale_ptrs + (0 if PLANTED_BUG == "first scale" else k // 128), mask=mask_n, other=0.0
                )
                product = dot(w, x, tl.zeros([BLOCK_N, BLOCK_M], tl.float32))
                acc = tl.fma(product, tl.broadcast_to(scale[:, None], [BLOCK_N, BLOCK_M]), acc)
            else:
                acc = dot(w, x, acc)
        if GRANULARITY != "block":
            acc *= tl.load(scale_ptrs, mask=mask_n, other=0.0)[:, None]
        total += acc
    out_ptr += (0 if PLANTED_BUG == "one part" else first.to(tl.int64)) * out_stride_p
    store_columns(out_ptr, total, offs_m, offs_n, out_stride_m, mask_m, mask_n)


@tunable("fp8_linear")
def pick_config(m: int, n: int, k: int, x_dtype: torch.dtype) -> Config:
    """The launch for x [m, k] and a weight [n, k]: parts of K hold whole blocks of 128."""
    block_k = 32 if x_dtype == torch.float32 else 64  # decoding a weight takes registers, as halves of x do
    return pick_tiles(m, n, k, block_k=block_k, unit_k=128, area=64 * 128)


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, *, granularity: str = "channel") -> Tensor:
    """x [M, K] times the transpose of an e4m3 weight [N, K] with scales, as [M, N] f32."""
    (m, k), n = x.shape, weight.size(0)
    return _launch(x, weight, scale, granularity, pick_config(m, n, k, x.dtype), tma=has_tma())


def _launch(
    x: Tensor, weight: Tensor, scale: Tensor, granularity: str, c: Config, bug: str = "", *, tma: bool = False
) -> Tensor:
    (m, k), n = x.shape, weight.size(0)
    out = x.new_empty(m, n, dtype=torch.float32)
    if zeros_where_empty(out, k, None):
        return out
    x, weight, scale, partial = rows(x), rows(weight.view(torch.uint8)), rows(scale), partials(c, out)
    fp8_linear_kernel[c.grid(m, n)](
        x, tiles_of(weight, c.block_n, c.block_k, tma), scale, partial, m, n, k, x.stride(0), weight.stride(0), scale.stride(0),
        partial.stride(0), partial.stride(1), c.part_k, GRANULARITY=granularity, PLANTED_BUG=bug,
        **c.constants, **c.options,
    )  # fmt: skip
    if c.split:
        sum_parts(partial, None, out)
    return out


def aot_cases() -> list[AotCase]:
    """One row and a chunk of a prompt, scales of channels and of blocks (also by descriptors), both types of x."""
    cases = []
    for m, x_type, granularity in itertools.product((1, 512), ("fp32", "bf16"), ("channel", "block")):
        x_dtype = torch.float32 if x_type == "fp32" else torch.bfloat16
        signature = {
            "x_ptr": f"*{x_type}", "weight_ptr": "*u8", "scale_ptr": "*fp32", "out_ptr": "*fp32",
            "scale_stride_x": "i32",
            **SIZE_TYPES,
        }  # fmt: skip
        c = pick_config(m, 4096, 4096, x_dtype)
        name = f"fp8_linear-{x_type}-{granularity}-M{m}-N4096-K4096"
        for descriptor in ("", "weight_ptr") if (x_type, granularity) == ("bf16", "block") else ("",):
            constants = {"GRANULARITY": granularity}
            cases.append(c.aot_case(name, fp8_linear_kernel, signature, constants, descriptor))
    return cases
