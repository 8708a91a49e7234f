# SPDX-License-Identifier: Apache-2.0
"""embedding in Triton: rows of a table as f32, scaled; bit-exact. Specification: pyspec/spec/embedding.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .aot import AotCase
from .dots import rows
from .silu_mul import Config, pick_config


@triton.jit
def embedding_kernel(
    ids_ptr,
    weight_ptr,
    out_ptr,
    K,
    scale,
    weight_stride_v,
    BLOCK: tl.constexpr,
    PLANTED_BUG: tl.constexpr = "",
):
    """BLOCK columns of the row of one token, as f32 times scale."""
    t = tl.program_id(0).to(tl.int64)
    offs_k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask_k = offs_k < K
    row = tl.load(ids_ptr + t).to(tl.int64) + (1 if PLANTED_BUG == "next row" else 0)
    x = tl.load(weight_ptr + row * weight_stride_v + offs_k, mask=mask_k, other=0.0).to(tl.float32)
    tl.store(out_ptr + t * K + offs_k, x * scale, mask=mask_k)


def embedding(ids: Tensor, weight: Tensor, *, scale: float = 1.0) -> Tensor:
    """Rows ids [T] of weight [V, K], times scale."""
    return _launch(ids, weight, scale, pick_config(weight.size(1)))


def _launch(ids: Tensor, weight: Tensor, scale: float, c: Config, bug: str = "") -> Tensor:
    t, k = ids.size(0), weight.size(1)
    out = weight.new_empty(t, k, dtype=torch.float32)
    if out.numel():
        weight = rows(weight)
        embedding_kernel[(t, triton.cdiv(k, c.block))](
            ids.contiguous(), weight, out, k, scale, weight.stride(0), BLOCK=c.block, PLANTED_BUG=bug,
            num_warps=c.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def aot_cases() -> list[AotCase]:
    """Rows of 4096 in bf16."""
    c = pick_config(4096)
    signature = {
        "ids_ptr": "*i32", "weight_ptr": "*bf16", "out_ptr": "*fp32", "K": "i32", "scale": "fp32",
        "weight_stride_v": "i32", "BLOCK": "constexpr", "PLANTED_BUG": "constexpr",
    }  # fmt: skip
    constants = {"BLOCK": c.block, "PLANTED_BUG": ""}
    return [AotCase("embedding", embedding_kernel, signature, constants, num_warps=c.num_warps)]
