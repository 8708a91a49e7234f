# SPDX-License-Identifier: Apache-2.0
"""softcap in Triton: cap * tanh(x / cap), element by element. Specification: pyspec/spec/softcap.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .aot import AotCase
from .dots import rows
from .silu_mul import Config, pick_config

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def tanh(y):
    """(1 - e) / (1 + e) with e = exp(-2 |y|) and y's sign: no overflow, and near 0 an absolute error of
    2^-23."""
    e = tl.exp2(tl.abs(y) * (-2.0 * LOG2_E))
    magnitude = tl.div_rn(1.0 - e, 1.0 + e)
    return tl.where(y < 0, -magnitude, magnitude)


@triton.jit
def softcap_kernel(x_ptr, out_ptr, K, cap, x_stride_m, BLOCK: tl.constexpr, PLANTED_BUG: tl.constexpr = ""):
    """BLOCK columns of one row of x [M, K]."""
    m = tl.program_id(0).to(tl.int64)
    offs_k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask_k = offs_k < (2147483647 if PLANTED_BUG == "no mask" else K)
    x = tl.load(x_ptr + m * x_stride_m + offs_k, mask=mask_k, other=0.0)
    tl.store(out_ptr + m * K + offs_k, cap * tanh(tl.div_rn(x, cap + tl.zeros_like(x))), mask=mask_k)


def softcap(x: Tensor, *, cap: float) -> Tensor:
    """x [M, K] bounded to (-cap, cap)."""
    return _launch(x, cap, pick_config(x.size(1)))


def _launch(x: Tensor, cap: float, c: Config, bug: str = "") -> Tensor:
    (m, k), out = x.shape, x.new_empty(x.shape)
    if out.numel():
        x = rows(x)
        softcap_kernel[(m, triton.cdiv(k, c.block))](
            x,
            out,
            k,
            cap,
            x.stride(0),
            BLOCK=c.block,
            PLANTED_BUG=bug,
            num_warps=c.num_warps,
            enable_fp_fusion=False,
        )
    return out


def aot_cases() -> list[AotCase]:
    """Logits of a vocabulary."""
    c = pick_config(128256)
    signature = {
        "x_ptr": "*fp32", "out_ptr": "*fp32", "K": "i32", "cap": "fp32", "x_stride_m": "i32",
        "BLOCK": "constexpr", "PLANTED_BUG": "constexpr",
    }  # fmt: skip
    return [
        AotCase(
            "softcap", softcap_kernel, signature, {"BLOCK": c.block, "PLANTED_BUG": ""}, num_warps=c.num_warps
        )
    ]
