# SPDX-License-Identifier: Apache-2.0
"""quantize_activations in Triton: f32 rows to int8 with a scale per group of 32; bit-exact.

Specification: pyspec/spec/quantize_activations.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .aot import AotCase
from .dots import rows
from .narrow import round_even, row_scale

BLOCK_G = 16  # groups of one program


@triton.jit
def quantize_activations_kernel(
    x_ptr, q_ptr, scale_ptr, sums_ptr, J, x_stride_m, BLOCK_G: tl.constexpr, PLANTED_BUG: tl.constexpr = ""
):
    """Groups [BLOCK_G, 32] of row m; J groups in a row."""
    m = tl.program_id(0).to(tl.int64)
    offs_g = (tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G))[:, None]
    mask_g = offs_g < (2147483647 if PLANTED_BUG == "no mask" else J)
    offs_k = offs_g * 32 + tl.arange(0, 32)[None, :]
    x = tl.load(x_ptr + m * x_stride_m + offs_k, mask=mask_g, other=0.0)
    scale = row_scale(x, 127.0)
    some = scale > 0
    amax = tl.max(tl.where(some, tl.abs(x), 1.0), axis=1, keep_dims=True)
    inverse = tl.div_rn(tl.full(amax.shape, 127.0, tl.float32), amax)
    q = round_even(tl.where(some, x * inverse, 0.0)).to(tl.int32)
    sums = tl.sum(tl.reshape(q, [BLOCK_G, 2, 16]), axis=2)
    tl.store(q_ptr + m * J * 32 + offs_k, q.to(tl.int8), mask=mask_g)
    tl.store(scale_ptr + m * J + offs_g, scale, mask=mask_g)
    row = 0 if PLANTED_BUG == "shared sums" else m
    tl.store(sums_ptr + (row * J + offs_g) * 2 + tl.arange(0, 2)[None, :], sums, mask=mask_g)


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, scale and half-group sums of x [M, K]."""
    return _launch(x)


def _launch(x: Tensor, bug: str = "") -> tuple[Tensor, Tensor, Tensor]:
    m, j = x.size(0), x.size(1) // 32
    q, scale = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(m, j)
    sums = x.new_empty(m, j, 2, dtype=torch.int32)
    if x.numel():
        x = rows(x)
        quantize_activations_kernel[(m, triton.cdiv(j, BLOCK_G))](
            x,
            q,
            scale,
            sums,
            j,
            x.stride(0),
            BLOCK_G=BLOCK_G,
            PLANTED_BUG=bug,
            num_warps=2,
            enable_fp_fusion=False,
        )
    return q, scale, sums


def aot_cases() -> list[AotCase]:
    """Rows of any length are the same kernel."""
    signature = {
        "x_ptr": "*fp32", "q_ptr": "*i8", "scale_ptr": "*fp32", "sums_ptr": "*i32", "J": "i32",
        "x_stride_m": "i32", "BLOCK_G": "constexpr", "PLANTED_BUG": "constexpr",
    }  # fmt: skip
    constants = {"BLOCK_G": BLOCK_G, "PLANTED_BUG": ""}
    return [AotCase("quantize_activations", quantize_activations_kernel, signature, constants, num_warps=2)]
