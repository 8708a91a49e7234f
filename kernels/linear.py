# SPDX-License-Identifier: Apache-2.0
"""linear in Triton: x times the transpose of a weight, f32 or bf16, in f32.

Specification: pyspec/spec/linear.py.
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
    sum_parts_case,
    tiles_of,
    zeros_where_empty,
)
from .dots import pick_config as pick_tiles
from .tuned import tunable

TMA_CASES = [("bf16", "bf16", 576), ("bf16", "bf16", 4096), ("fp32", "fp32", 4096)]  # of the compiled ones


@triton.jit(do_not_specialize=["M"])
def linear_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, M, N, K, x_stride_m, weight_stride_n, out_stride_p, out_stride_m,
    part_k, PARTS: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """One tile of out, or of one part of K of it."""
    first_n = tl.program_id(0) * BLOCK_N
    offs_n = (first_n + tl.arange(0, BLOCK_N)).to(tl.int64)
    offs_m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    mask_n, mask_m = offs_n < N, offs_m < M
    first = tl.program_id(2)
    last = first + 1 if SPLIT else PARTS
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for part in range(first, last):
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for k in range(part * part_k, min(K, (part + 1) * part_k), BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            mask_k = offs_k < (part * part_k + BLOCK_K * 1000 if PLANTED_BUG == "no mask" else K)
            x = load_columns(x_ptr, offs_m, offs_k, x_stride_m, mask_m, mask_k)
            w = load_rows(weight_ptr, first_n, k, offs_n, offs_k, weight_stride_n, mask_n, mask_k)
            acc = dot(w, x.to(tl.bfloat16) if PLANTED_BUG == "high half" else x, acc)
        total += acc
    if bias_ptr is not None and not SPLIT:
        total += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0)[:, None]
    out_ptr += (0 if PLANTED_BUG == "one part" else first.to(tl.int64)) * out_stride_p
    store_columns(out_ptr, total, offs_m, offs_n, out_stride_m, mask_m, mask_n)


@tunable("linear")
def pick_config(m: int, n: int, k: int, x_dtype: torch.dtype, weight_dtype: torch.dtype) -> Config:
    """The launch for x [m, k] and a weight [n, k]."""
    block_k = 32 if weight_dtype == torch.float32 else 64  # as many bytes a step
    # 255 registers hold a tile of 128 x 128; the halves of f32 operands take the place of half of it.
    area = 64 * 128 if torch.float32 in (x_dtype, weight_dtype) else 128 * 128
    return pick_tiles(m, n, k, block_k=block_k, unit_k=64, area=area)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] times the transpose of weight [N, K], plus bias [N], as [M, N] f32."""
    (m, k), n = x.shape, weight.size(0)
    return _launch(x, weight, bias, pick_config(m, n, k, x.dtype, weight.dtype), tma=has_tma())


def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, c: Config, bug: str = "", *, tma: bool = False
) -> Tensor:
    (m, k), n = x.shape, weight.size(0)
    out = x.new_empty(m, n, dtype=torch.float32)
    if zeros_where_empty(out, k, bias):
        return out
    x, weight, partial = rows(x), rows(weight), partials(c, out)
    bias = None if bias is None else bias.contiguous()
    linear_kernel[c.grid(m, n)](
        x, tiles_of(weight, c.block_n, c.block_k, tma), bias, partial, m, n, k, x.stride(0), weight.stride(0), partial.stride(0),
        partial.stride(1), c.part_k, PLANTED_BUG=bug, **c.constants, **c.options,
    )  # fmt: skip
    if c.split:
        sum_parts(partial, bias, out)
    return out


def aot_cases() -> list[AotCase]:
    """One row and a chunk of a prompt in every pair of types, with and without parts; bf16 also by descriptors."""
    cases = []
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for m, n, k in ((1, 576, 576), (1, 49152, 576), (512, 4096, 4096)):
        for x_type, weight_type in itertools.product(types, types):
            c = pick_config(m, n, k, types[x_type], types[weight_type])
            signature = {
                "x_ptr": f"*{x_type}",
                "weight_ptr": f"*{weight_type}",
                "out_ptr": "*fp32",
                **SIZE_TYPES,
            }
            name = f"linear-{x_type}-{weight_type}-M{m}-N{n}-K{k}"
            for descriptor in ("", "weight_ptr") if (x_type, weight_type, n) in TMA_CASES else ("",):
                cases.append(c.aot_case(name, linear_kernel, signature, {"bias_ptr": None}, descriptor))
    return [*cases, sum_parts_case()]
