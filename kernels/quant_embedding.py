# SPDX-License-Identifier: Apache-2.0
"""quant_embedding in Triton: rows of a GGUF table as f32; the bits of pyspec/spec/quant_embedding.py.

Reads GGUF rows as they lie; the CPU's packed layout is refused. One program has 8 groups of 32 values of
one row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyspec.spec.quant_formats import FORMATS

from .aot import AotCase
from .dots import rows
from .gguf import group_scales, group_values, row_multiplier

BLOCK_G = 8  # groups of one program: a block of the K-quants


@triton.jit
def quant_embedding_kernel(
    ids_ptr, qweight_ptr, out_ptr, K, scale, qweight_stride_r,
    FORMAT: tl.constexpr, BLOCK_G: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """Groups [BLOCK_G, 32] of the row of one token, as f32 times scale."""
    t = tl.program_id(0).to(tl.int64)
    g = (tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G))[:, None]
    mask_g = g < (2147483647 if PLANTED_BUG == "no mask" else K // 32)
    row = tl.load(ids_ptr + t).to(tl.int64)
    row_ptrs = qweight_ptr + row * qweight_stride_r + tl.zeros([1, 1], tl.int64)
    q = group_values(row_ptrs, g, mask_g, FORMAT).to(tl.float32)
    d, minimum = group_scales(row_ptrs, g, mask_g, FORMAT)
    multiplier = row_multiplier(row_ptrs, tl.full([1, 1], 1, tl.int1), K, FORMAT)
    offs_k = tl.arange(0, 32)[None, :]
    if FORMAT == "q4_k" or FORMAT == "q6_k":
        d, minimum = halved(d, multiplier), halved(minimum, multiplier)
    if FORMAT == "q6_k":  # two scales of 16 values instead of a scale and a minimum
        d, minimum = tl.where(offs_k < 16, d, minimum), 0.0
    weight = q * d + minimum  # plus 0 where there is none: -0 becomes 0, as in the specification
    tl.store(out_ptr + t * K + g * 32 + offs_k, weight * multiplier * scale, mask=mask_g)


@triton.jit
def halved(scale, multiplier):
    """A K-quant's scale at 11 bits: scale / multiplier as f16."""
    return tl.div_rn(scale, multiplier + tl.zeros_like(scale)).to(tl.float16).to(tl.float32)


def limit(sizes: dict[str, int], *args: Tensor, layout: str = "rows", **kwargs: object) -> str | None:
    """Why the kernel cannot run a call, or None."""
    return None if layout == "rows" else f"layout must be rows (packed is the CPU's), got {layout}"


def quant_embedding(
    ids: Tensor, qweight: Tensor, *, format: str, layout: str = "rows", num_rows: int = 0, scale: float = 1.0
) -> Tensor:
    """Rows ids [T] of the GGUF table qweight [R, Y], times scale."""
    return _launch(ids, qweight, format, scale)


def _launch(ids: Tensor, qweight: Tensor, format: str, scale: float, bug: str = "") -> Tensor:
    k = qweight.size(1) // FORMATS[format].block_bytes * FORMATS[format].block_k
    out = qweight.new_empty(ids.size(0), k, dtype=torch.float32)
    if out.numel():
        qweight = rows(qweight)
        quant_embedding_kernel[(ids.size(0), triton.cdiv(k // 32, BLOCK_G))](
            ids.contiguous(), qweight, out, k, scale, qweight.stride(0), FORMAT=format, BLOCK_G=BLOCK_G,
            PLANTED_BUG=bug, num_warps=2, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def aot_cases() -> list[AotCase]:
    """Every format."""
    signature = {
        "ids_ptr": "*i32", "qweight_ptr": "*u8", "out_ptr": "*fp32", "K": "i32", "scale": "fp32",
        "qweight_stride_r": "i32", "FORMAT": "constexpr", "BLOCK_G": "constexpr",
        "PLANTED_BUG": "constexpr",
    }  # fmt: skip
    return [
        AotCase(
            f"quant_embedding-{format}", quant_embedding_kernel, signature,
            {"FORMAT": format, "BLOCK_G": BLOCK_G, "PLANTED_BUG": ""}, num_warps=2,
            attrs=("ids_ptr", "out_ptr"),
        )
        for format in FORMATS
    ]  # fmt: skip
